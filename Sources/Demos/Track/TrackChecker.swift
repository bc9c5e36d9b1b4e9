internal import PinKit
internal import Terminal

/// What was seen in one interval: two collections, and all that they are compared with.
///
/// An interval begins and ends with the writers shut out. In between, the writers run; the first collection races with them, and
/// the second is made after they were shut out again.
struct TrackInterval: Sendable {
  var number: Int
  /// Collected while the writers ran.
  var racing: DirtySet
  /// Collected with the writers shut out, at the end.
  var quiet: DirtySet
  /// What the writers logged before they wrote.
  var written: DirtySet
  /// Of that, what they logged after the racing collection had returned.
  var writtenLater: DirtySet
  /// Pages whose bytes differ, at the end, from the shadow copy: that is, from what they were when the interval began, or for pages of
  /// `racing`, if `copiesRacing`, from what was copied right after that collection, with the writers running.
  var differing: DirtySet
  var copiesRacing: Bool
  /// What the kernel said was written, just before the quiet collection; `nil` if it was not asked.
  var kernel: DirtySet?

  var reported: DirtySet { racing.union(quiet) }
}

/// Judges intervals, one after the other.
struct TrackChecker {
  /// How often something was compared, and how often it was wrong.
  struct Tally: Sendable, Hashable {
    var checked = 0
    var wrong = 0
    var first: String?

    mutating func add(_ checked: Int, wrong pages: DirtySet, _ interval: Int, _ name: (Int) -> String) {
      self.checked += checked
      guard let page = pages.runs.first?.lowerBound else { return }
      wrong += pages.count
      first = first ?? "page \(page) (\(name(page))) in interval \(interval)"
    }

    /// `; the first: …`, or nothing.
    var blame: String { first.map { "; the first: \($0)" } ?? "" }
  }

  private let name: @Sendable (Int) -> String
  private(set) var intervals = 0
  private(set) var reported = 0
  private var missed = Tally()
  private var later = Tally()
  private var stale = Tally()
  private var invented = Tally()
  private var kernel = Tally()
  private var kernelComparisons = 0

  private let asksKernel: Bool

  /// - Parameters:
  ///   - asksKernel: Whether some intervals will have been compared with the kernel.
  ///   - name: What lies on a page, for messages.
  init(asksKernel: Bool, name: @escaping @Sendable (Int) -> String) {
    self.asksKernel = asksKernel
    self.name = name
  }

  /// Whether each comparison was made at least once.
  var hasSeenEnough: Bool {
    missed.checked > 0 && later.checked > 0 && invented.checked > 0 && (kernel.checked > 0 || !asksKernel)
  }

  mutating func judge(_ interval: TrackInterval) {
    let found = interval.reported
    intervals += 1
    reported += found.count
    // A page that was written with the bytes it had was written too.
    let written = interval.differing.union(interval.written)
    missed.add(written.count, wrong: written.subtracting(found), interval.number, name)
    invented.add(found.count, wrong: found.subtracting(interval.written), interval.number, name)
    later.add(
      interval.writtenLater.count, wrong: interval.writtenLater.subtracting(interval.quiet), interval.number, name)
    if interval.copiesRacing {
      let unchanged = interval.racing.subtracting(interval.quiet)
      stale.add(
        unchanged.count, wrong: unchanged.subtracting(unchanged.subtracting(interval.differing)), interval.number, name)
    }
    if let said = interval.kernel {
      kernelComparisons += 1
      let differing = said.subtracting(interval.quiet).union(interval.quiet.subtracting(said))
      kernel.add(said.count, wrong: differing, interval.number, name)
    }
  }

  /// The claims about what was judged. Nothing judged is nothing proved: then they do not hold.
  ///
  /// - Parameters:
  ///   - subject: What they are about: a mechanism.
  ///   - oracle: How the kernel was asked.
  func claims(_ subject: String, oracle: String?) -> [Claim] {
    func claim(_ contract: String, _ text: String, _ tally: Tally, _ evidence: String) -> Claim {
      Claim(
        contract: contract, claim: "\(subject): \(text)", holds: tally.wrong == 0 && tally.checked > 0,
        evidence: evidence + tally.blame)
    }
    var claims = [
      claim(
        "W5", "no written page was missed", missed,
        "\(missed.checked.grouped) written pages in \(intervals.grouped) intervals, from the log and by comparing bytes; \(missed.wrong.grouped) missed"
      ),
      claim(
        "W5", "what was written after collect() returned was in the next set", later,
        "\(later.checked.grouped) pages written between a racing collection and the next; \(later.wrong.grouped) not in it"),
      claim(
        "K1", "no page was reported that was not written", invented,
        "\(invented.checked.grouped) pages reported; \(invented.wrong.grouped) not in the log"),
    ]
    // Where every dirty page is written all the time, no copy outlives its interval.
    if stale.checked > 0 {
      claims.append(
        claim(
          "W1", "a page copied while writers ran is right unless the next set names it", stale,
          "\(stale.checked.grouped) pages copied so and not named again; \(stale.wrong.grouped) differ"))
    }
    if let oracle {
      claims.append(
        claim(
          "K1", "with the writers shut out, the set is the kernel's own", kernel,
          "\(kernelComparisons.grouped) sets of together \(kernel.checked.grouped) pages compared with \(oracle); \(kernel.wrong.grouped) pages differ"
        ))
    }
    return claims
  }
}
