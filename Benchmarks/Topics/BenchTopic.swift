/// One field of PinKit that is measured beside the raw kernel.
///
/// A new topic is a type that lists its rows and an entry in ``BenchTopics/all``.
public protocol BenchTopic {
  /// What the user types after `pinctl bench`.
  static var name: String { get }
  /// Every row of the topic, in the order in which they are printed. Measures nothing yet.
  static var rows: [BenchRow] { get }
  /// Throws, saying why, where this machine cannot run the topic. A floor that cannot be reached ends the process.
  static func check() throws
}

/// Why a figure cannot be had, or would lie.
struct BenchFault: Error, CustomStringConvertible {
  let description: String
}

/// Why a row is left out on this machine: it says nothing of PinKit.
public struct BenchSkip: Error, CustomStringConvertible {
  public let description: String
}

/// All topics, in the order in which `pinctl bench` runs them.
public enum BenchTopics {
  public static var all: [any BenchTopic.Type] {
    [
      TrackTopic.self, CowTopic.self, SnapshotTopic.self, NotifyTopic.self, VringTopic.self, PinTopic.self, FileTopic.self,
      SealTopic.self, ScaleTopic.self,
    ]
  }
}

/// How much is measured.
public struct BenchPlan: Sendable {
  /// Rounds of each side; the medians are reported.
  public let rounds: Int
  /// A sixteenth of the memory: shows that everything runs, the figures are noisier.
  public let quick: Bool

  public init(rounds: Int, quick: Bool) {
    self.rounds = rounds
    self.quick = quick
  }

  func pages(_ full: Int) -> Int { quick ? full / 16 : full }
}

/// What a row is held to.
public enum BenchGoal: Sendable, Hashable {
  /// At most so many times the floor.
  case ratio(Double)
  /// At most so much, whatever the floor.
  case value(Double)
  /// At most so much more than the floor.
  case added(Double)
  /// Nothing: the figures are for the reader.
  case reported
}

/// One measurement: PinKit and a floor that does the same work without it.
public struct BenchRow: Sendable {
  public let name: String
  public let unit: String
  public let goal: BenchGoal
  /// What the floor is.
  public let floorName: String
  /// A round's figure is the least of so many tries, as what disturbs a short one can only add to it.
  let tries: Int
  let prepare: @Sendable (BenchPlan) throws -> BenchContest

  init(
    _ name: String, unit: String = "ns/page", goal: BenchGoal, floor: String, tries: Int = 1,
    prepare: @escaping @Sendable (BenchPlan) throws -> BenchContest
  ) {
    self.name = name
    self.unit = unit
    self.goal = goal
    self.floorName = floor
    self.tries = tries
    self.prepare = prepare
  }
}

/// The two sides of a row. Each call is one try and returns its figure; what they share lives in their captures.
struct BenchContest {
  let pinkit: () throws -> Double
  let floor: () throws -> Double
}

/// What a row measured.
public struct BenchResult: Sendable, Encodable {
  public let name: String
  public let unit: String
  public let pinkit: Double
  public let floor: Double
  public let floorName: String
  public let ratio: Double
  public let rounds: Int

  public init(name: String, unit: String, pinkit: Double, floor: Double, floorName: String, rounds: Int) {
    self.name = name
    self.unit = unit
    self.pinkit = pinkit
    self.floor = floor
    self.floorName = floorName
    self.ratio = floor > 0 ? pinkit / floor : 0
    self.rounds = rounds
  }

  /// Whether the figure keeps the goal.
  public func meets(_ goal: BenchGoal) -> Bool {
    switch goal {
    case .ratio(let limit): ratio <= limit
    case .value(let limit): pinkit <= limit
    case .added(let limit): pinkit - floor <= limit
    case .reported: true
    }
  }
}

extension BenchRow {
  /// Measures both sides in turn, so that whatever drifts on the machine drifts for both; who goes first alternates.
  ///
  /// - Throws: ``BenchSkip`` where this machine cannot run the row.
  public func run(_ plan: BenchPlan) throws -> BenchResult {
    let contest = try prepare(plan)
    var pinkit: [Double] = []
    var floor: [Double] = []
    for round in 0..<plan.rounds {
      if round.isMultiple(of: 2) {
        floor.append(try least(contest.floor))
        pinkit.append(try least(contest.pinkit))
      } else {
        pinkit.append(try least(contest.pinkit))
        floor.append(try least(contest.floor))
      }
    }
    return BenchResult(
      name: name, unit: unit, pinkit: median(pinkit), floor: median(floor), floorName: floorName, rounds: plan.rounds)
  }

  private func least(_ side: () throws -> Double) throws -> Double {
    var least = try side()
    for _ in 0..<tries - 1 { least = min(least, try side()) }
    return least
  }
}

func median(_ values: [Double]) -> Double {
  let sorted = values.sorted()
  guard !sorted.isEmpty else { return 0 }
  return (sorted[(sorted.count - 1) / 2] + sorted[sorted.count / 2]) / 2
}
