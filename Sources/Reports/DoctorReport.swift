package import PinKit

/// What `pinctl doctor` prints.
package struct DoctorReport: Codable, Hashable {
  package var canRun: Bool
  var capabilities: Capabilities
  /// The kernel's names of the bits in `capabilities.features`.
  var featureNames: [String]
  var verdicts: [Capabilities.Verdict]
  var fixes: [Capabilities.Fix]

  package init(_ capabilities: Capabilities) {
    self.capabilities = capabilities
    canRun = capabilities.canRun
    featureNames = Userfaultfd.Features.names.filter { capabilities.features.contains($0.0) }.map(\.1)
    verdicts = capabilities.verdicts
    fixes = capabilities.fixes
  }

  package func text() -> String {
    var lines = ["PinKit \(canRun ? "can" : "cannot") run here.", ""]
    lines += table(systemRows) + ["", "userfaultfd"] + table(userfaultfdRows, indent: 2)
    lines += ["", "Can be registered with a userfaultfd"] + table(registrationRows, indent: 2)
    lines += ["", "Noticing writes"] + table(mechanismRows, indent: 2)
    lines += notes
    lines += ["", "Devices that pin memory", "  \(capabilities.deviceAdvice)"]
    if fixes.isEmpty {
      lines += ["", "Nothing is missing."]
    } else {
      lines += ["", "What is missing, and what fixes it (where there are several ways, try the first one first)"]
      for (index, fix) in fixes.enumerated() {
        let isAnother = index > 0 && fixes[index - 1].problem == fix.problem
        lines += (isAnother ? [] : ["  \(fix.problem)"]) + ["    $ \(fix.command)", "      \(fix.effect)"]
      }
    }
    return lines.joined(separator: "\n")
  }
}

extension DoctorReport {
  private var systemRows: [[String]] {
    let found = capabilities
    return [
      ["kernel", "\(found.kernelRelease), pages of \(found.pageSize) bytes"],
      [
        "user", "\(found.effectiveUser), CAP_SYS_PTRACE \(found.hasPtraceCapability.map { $0 ? "yes" : "no" } ?? "unknown")",
      ],
      ["container", "\(found.container ?? "none seen"), seccomp \(found.seccomp.map { "\($0)" } ?? "unknown")"],
      ["PAGEMAP_SCAN", "\(found.pagemapScan)"],
      ["io_uring", "\(found.ioUring)"],
      ["membarrier, expedited", "\(found.membarrier)"],
      ["/proc/kpagecount", "\(found.pageCounts)"],
      [
        "transparent huge pages",
        "\(found.transparentHugePages.enabled ?? "none"), memfd \(found.transparentHugePages.shmemEnabled ?? "none")",
      ],
      [
        "reserved huge pages",
        found.hugePages.map { "\($0.total) of \($0.pageSize >> 20) MiB, \($0.free) free" } ?? "none",
      ],
      ["swap", found.swap.map { $0.total == 0 ? "none" : "\($0.free >> 20) of \($0.total >> 20) MiB free" } ?? "unknown"],
      ["vm.unprivileged_userfaultfd", number(found.sysctls.unprivilegedUserfaultfd)],
      ["vm.max_map_count", number(found.sysctls.maxMapCount)],
      ["vm.overcommit_memory", number(found.sysctls.overcommitMemory)],
      ["kernel.io_uring_disabled", number(found.sysctls.ioUringDisabled)],
      ["open descriptors", limit(found.openFiles)],
      ["locked memory, bytes", limit(found.lockedMemory)],
    ]
  }

  private var userfaultfdRows: [[String]] {
    [
      ["/dev/userfaultfd", "\(capabilities.userfaultfd.device)"],
      ["userfaultfd(2)", "\(capabilities.userfaultfd.systemCall)"],
      ["UFFD_USER_MODE_ONLY", "\(capabilities.userfaultfd.userModeOnly)"],
    ] + featureRows
  }

  /// Six to a line.
  private var featureRows: [[String]] {
    guard !featureNames.isEmpty else { return [["features", "none"]] }
    return stride(from: 0, to: featureNames.count, by: 6).map { start in
      [start == 0 ? "features" : "", featureNames[start..<min(start + 6, featureNames.count)].joined(separator: " ")]
    }
  }

  private var registrationRows: [[String]] {
    let word = { (attempt: Capabilities.Attempt) in
      switch attempt {
      case .worked: "yes"
      case .refused: "no"
      case .notTried: "-"
      }
    }
    let row = { (name: String, backing: Capabilities.Backing) in
      [name] + [backing.missing, backing.minor, backing.writeProtect, backing.writeProtectAsync].map(word)
    }
    return [
      ["", "missing", "minor", "wp", "wp async"],
      row("anonymous", capabilities.anonymous), row("memfd", capabilities.shmem), row("hugetlb", capabilities.hugetlb),
      row("file\(capabilities.fileSystem.map { " (\($0))" } ?? "")", capabilities.file),
    ]
  }

  private var mechanismRows: [[String]] {
    let kinds = Capabilities.MemoryKind.allCases
    return [[""] + kinds.map(\.rawValue)]
      + Capabilities.Mechanism.allCases.map { mechanism in
        [mechanism.rawValue]
          + kinds.map { kind in
            let verdict = verdicts.first { $0.mechanism == mechanism && $0.memory == kind }
            guard let verdict else { return "?" }
            return (verdict.isAvailable ? "yes" : "no") + (noteNumber(verdict.reason).map { " [\($0)]" } ?? "")
          }
      }
  }

  /// The reasons, each once, in the order of the table.
  private var reasons: [String] {
    let order = Capabilities.Mechanism.allCases.flatMap { mechanism in verdicts.filter { $0.mechanism == mechanism } }
    var seen: Set<String> = []
    return order.map(\.reason).filter { !$0.isEmpty && seen.insert($0).inserted }
  }

  private func noteNumber(_ reason: String) -> Int? { reasons.firstIndex(of: reason).map { $0 + 1 } }

  private var notes: [String] { reasons.enumerated().map { "  [\($0.offset + 1)] \($0.element)" } }

  private func number(_ value: Int?) -> String { value.map(String.init) ?? "not there" }

  private func limit(_ limit: Capabilities.Limit) -> String {
    "\(limit.soft.map(String.init) ?? "unlimited"), at most \(limit.hard.map(String.init) ?? "unlimited")"
  }

  private func table(_ rows: [[String]], indent: Int = 0) -> [String] {
    var widths: [Int] = []
    for row in rows {
      for (column, cell) in row.enumerated() {
        if column == widths.count { widths.append(0) }
        widths[column] = max(widths[column], cell.count)
      }
    }
    return rows.map { row in
      var line = String(repeating: " ", count: indent)
      for (column, cell) in row.enumerated() {
        line += cell
        if column < row.count - 1 { line += String(repeating: " ", count: widths[column] - cell.count + 2) }
      }
      return line
    }
  }
}
