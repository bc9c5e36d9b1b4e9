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
    private func note() { _ = makers.withLock { $0.insert(Kernel.threadID) } }
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

  @Test("K5: the handles of metrics are made by who starts the threads, never by one of PinKit's")
  func metrics() async {
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
      check(factory.makers.withLock { $0 }, is: [Kernel.threadID])
    }
  }
}
