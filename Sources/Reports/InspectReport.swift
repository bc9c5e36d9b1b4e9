package import PinKit
internal import Terminal

/// What `pinctl inspect` found.
package struct InspectReport: Codable, Hashable {
  var pid: Int32
  var name: String
  /// Those of the range, if there is one.
  var mappings: [Entry]
  var pages: Pages?
  /// What this user, or this kernel, does not show.
  var notSeen: [String]

  package struct Entry: Codable, Hashable {
    var details: MappingDetails
    /// Other processes that map a part of the same file.
    var holders: [Int32]
  }

  package struct Pages: Codable, Hashable {
    var range: AddressRange
    /// In bytes.
    var pageSize: Int
    /// Pages that have nothing are left out.
    var runs: [Run]
  }

  package struct Run: Codable, Hashable {
    var start: UInt
    var pages: Int
    var state: [String]
    var mapCount: Int?

    init(_ run: ObservedPages.Run, pageSize: Int) {
      start = run.range.start
      pages = run.range.count / pageSize
      state = ObservedPages.State.names.filter { run.state.contains($0.0) }.map(\.1)
      mapCount = run.mapCount
    }

    var flags: ObservedPages.State {
      ObservedPages.State.names.reduce(into: []) { if state.contains($1.1) { $0.insert($1.0) } }
    }
  }

  package init(pid: Int32, range wanted: InspectedRange?) throws(PinError) {
    let process = try ObservedProcess(pid)
    self.pid = pid
    name = try process.name()
    var found = try process.mappings()
    notSeen = []
    if let wanted {
      let range = try wanted.resolved(found.map(\.mapping))
      found = found.filter { $0.mapping.range.overlaps(range) }
      var pages = try process.pages()
      let pageSize = ObservedPages.pageSize
      var runs: [Run] = []
      // Mapping by mapping: what lies between them is nobody's.
      for mapping in found {
        try pages.scan(mapping.mapping.range.clamped(to: range)) { runs.append(Run($0, pageSize: pageSize)) }
      }
      self.pages = Pages(range: range, pageSize: pageSize, runs: runs)
      if !pages.seesMapCounts { notSeen.append("how often pages are mapped (/proc/kpagecount needs root)") }
      if !pages.seesFrameFlags { notSeen.append("which pages are dirty (/proc/kpageflags needs root)") }
    }
    let holders = try process.holders(of: found.map(\.mapping))
    mappings = zip(found, holders.processes).map { Entry(details: $0.0, holders: $0.1) }
    if holders.hidden > 0 {
      notSeen.append(
        "the mappings of \(counted(holders.hidden, "other process", "other processes")), perhaps of the same files (needs CAP_SYS_PTRACE)"
      )
    }
  }
}
