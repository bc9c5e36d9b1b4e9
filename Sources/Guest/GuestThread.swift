internal import Dispatch
internal import Foundation
public import PinKit
internal import Synchronization

/// A guest that walks through a region without pause, on a thread of its own.
///
/// Where ``Region/protect(_:to:)`` forbids it to write, it tries again until it may.
public final class GuestThread: Sendable {
  public let walk: GuestWalk
  private let region: Region
  private let isStopping = Atomic<Bool>(false)
  private let entered = Atomic<UInt64>(0)
  private let made = Atomic<UInt64>(0)
  private let forbidden = Atomic<Int>(0)
  private let outcome = Mutex<(failure: PinError?, refusals: Int, translations: Int?)>((nil, 0, nil))
  private let group = DispatchGroup()

  /// How many stores the guest makes before it looks whether it has to stop.
  private static let batch = 1024

  public init(in region: Region, walk: GuestWalk) {
    self.region = region
    self.walk = walk
  }

  public convenience init(in region: Region) { self.init(in: region, walk: GuestWalk(in: region)) }

  public func start() {
    group.enter()
    let thread = Thread { [self] in
      do throws(PinError) { try go() } catch { outcome.withLock { $0.failure = error } }
      group.leave()
    }
    thread.name = "guest"
    thread.start()
  }

  /// Stops the guest and waits for it; may be called again.
  ///
  /// - Throws: ``PinError``, what stopped it before.
  public func stop() throws(PinError) {
    isStopping.store(true, ordering: .sequentiallyConsistent)
    group.wait()
    if let failure = outcome.withLock({ $0.failure }) { throw failure }
  }

  /// How many stores were made for sure.
  public var progress: UInt64 { made.load(ordering: .acquiring) }
  /// How many can have been made at most.
  public var horizon: UInt64 { entered.load(ordering: .acquiring) }
  /// How often it found that it may not write.
  public var forbiddenStores: Int { forbidden.load(ordering: .acquiring) }
  /// As ``GuestMachine/refusals``, when it has stopped.
  public var refusals: Int { outcome.withLock { $0.refusals } }
  /// As ``GuestMachine/translationsMade``, when it has stopped.
  public var translationsMade: Int? { outcome.withLock { $0.translations } }
  /// Why it ended by itself.
  public var failure: PinError? { outcome.withLock { $0.failure } }

  private func go() throws(PinError) {
    var machine = try GuestMachine(in: region)
    var number = UInt64(1)
    while !isStopping.load(ordering: .acquiring) {
      entered.store(number + UInt64(Self.batch) - 1, ordering: .sequentiallyConsistent)
      var isResumed = false
      while true {
        let isLast = isStopping.load(ordering: .acquiring)
        do throws(PinError) {
          if isResumed { try machine.resume() } else { try machine.run(walk.stores(from: number, count: Self.batch)) }
          break
        } catch  where error.code == .accessDenied {
          forbidden.add(1, ordering: .releasing)
          if isLast { return }
          isResumed = true
          Thread.sleep(forTimeInterval: 0.000_2)
        }
      }
      number += UInt64(Self.batch)
      made.store(number - 1, ordering: .sequentiallyConsistent)
    }
    let found = (machine.refusals, machine.translationsMade)
    outcome.withLock { ($0.refusals, $0.translations) = found }
  }
}
