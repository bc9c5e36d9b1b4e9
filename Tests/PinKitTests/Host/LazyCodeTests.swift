import CTestSupport
import CoreMetrics
import Synchronization
import Testing

@testable import PinKit

/// K5: a fork that catches one of PinKit's threads must not catch it at making what the child needs, too.
@Suite("Lazily made things and fork") struct LazyCodeTests {
  /// Notes on which threads handles are made.
  final class Factory: MetricsFactory {
    let makers = Mutex<Set<CInt>>([])
    let isFirst = Atomic(true)
    let hasForked = Atomic(false)
    let forker = Mutex<HostThread?>(nil)
    private func note() {
      _ = makers.withLock { $0.insert(Kernel.threadID) }
      guard isFirst.exchange(false, ordering: .sequentiallyConsistent), ct_has_thread_sanitizer() == 0 else { return }
      let isThere = Atomic(false)
      let thread = HostThread { [self] in
        isThere.store(true, ordering: .sequentiallyConsistent)
        let process = ct_fork()
        if process == 0 { ct_exit(0) }
        hasForked.store(true, ordering: .sequentiallyConsistent)
        check(ct_wait(process), is: 0)
      }
      forker.withLock { $0 = thread }
      while !isThere.load(ordering: .sequentiallyConsistent) { Kernel.pause(nanoseconds: 100_000) }
      Kernel.pause(nanoseconds: 50_000_000)
      check(!hasForked.load(ordering: .sequentiallyConsistent), "a fork caught the thread at making a handle")
    }
    func makeCounter(label: String, dimensions: [(String, String)]) -> any CounterHandler {
      note()
      return NOOPMetricsHandler.instance
    }
    func makeRecorder(label: String, dimensions: [(String, String)], aggregate: Bool) -> any RecorderHandler {
      note()
      return NOOPMetricsHandler.instance
    }
    func makeTimer(label: String, dimensions: [(String, String)]) -> any TimerHandler {
      note()
      return NOOPMetricsHandler.instance
    }
    func destroyCounter(_ handler: any CounterHandler) {}
    func destroyRecorder(_ handler: any RecorderHandler) {}
    func destroyTimer(_ handler: any TimerHandler) {}
  }

  @Test("K5: the handles of metrics are made by the watchdog, under no lock of a space's, while nobody can fork")
  func metrics() async {
    let obstacle = ct_has_thread_sanitizer() == 0 ? nil : "the thread sanitizer has no child of fork()"
    Test.leaveOut("a fork meanwhile", if: obstacle)
    await #expect(processExitsWith: .success) {
      ct_deadline(300)
      let factory = Factory()
      MetricsSystem.bootstrap(factory)
      let looks = Shared()
      let tracked = try Tracked(.handlerThread, configure: { $0.metricsInterval = 0.001 })
      TestHooks.set(.watching) { _ in looks.add() }
      try tracked.expectExact()
      while looks.value < 3 { Kernel.pause(nanoseconds: 1_000_000) }
      TestHooks.set(.watching, nil)
      try tracked.close()
      factory.forker.withLock { $0 }?.join()
      let makers = factory.makers.withLock { $0 }
      check(makers.count == 1 && !makers.contains(Kernel.threadID), "\(makers)")
    }
  }

  @Test("Where no metrics are published the program's factory is not called")
  func noMetrics() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(300)
      let factory = Factory()
      MetricsSystem.bootstrap(factory)
      let looks = Shared()
      let tracked = try Tracked(.handlerThread, configure: { $0.metricsInterval = 0 })
      TestHooks.set(.watching) { _ in looks.add() }
      while looks.value < 2 { Kernel.pause(nanoseconds: 1_000_000) }
      TestHooks.set(.watching, nil)
      try tracked.close()
      check(factory.makers.withLock { $0 }, is: [])
    }
  }
}
