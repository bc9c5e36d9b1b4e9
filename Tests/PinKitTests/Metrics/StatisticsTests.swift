import CTestSupport
import CoreMetrics
import MetricsTestKit
import Testing

@testable import PinKit

@Suite("Statistics") struct StatisticsTests {
  @Test("Every resolved fault is counted once, by kind, with its latency", arguments: Mechanisms.synchronous)
  func countsFaults(_ mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace()
    let region = try space.map(.anonymous(hugePages: .never), pages: 64)
    let tracker = try region.trackWrites(mechanism)
    try region.fill(with: 1)
    #expect(try tracker.collect().count == 64)
    let statistics = space.statistics
    let faults = [
      WriteTracking.Mechanism.handlerThread: statistics.handlerThreadFaults,
      .inPlace: statistics.inPlaceFaults, .mprotect: statistics.mprotectFaults,
    ]
    #expect(faults[mechanism] == 64)
    #expect(faults.values.reduce(0, +) == 64)
    #expect(statistics.openedPages == 64)
    #expect(statistics.faultAroundPages == 0)
    let latency = statistics.faultLatency
    #expect(latency.count == 64)
    #expect(latency.p50 > 0 && latency.p50 <= latency.p90 && latency.p90 <= latency.p99)
    #expect(latency.p99 <= latency.p999 && latency.p999 <= latency.maximum)
    try space.close()
  }

  @Test("The kernel's own tracking takes no fault through PinKit") func asynchronousTakesNoFault() throws {
    let space = try AddressSpace()
    let region = try space.map(.anonymous(hugePages: .never), pages: 64)
    let tracker = try region.trackWrites(.asynchronous)
    try region.fill(with: 1)
    #expect(try tracker.collect().count == 64)
    #expect(space.statistics.faultLatency.count == 0)
    #expect(space.statistics.openedPages == 0)
    try space.close()
  }

  @Test("A sequential writer's window grows, is visible, and saves faults; its neighbours are reported as such")
  func windowIsVisible() throws {
    let space = try AddressSpace()
    let region = try space.map(.anonymous(hugePages: .never), pages: 1024)
    try region.fill(with: 0)
    let tracker = try region.trackWrites(.handlerThread, options: .init(faultAround: .adaptive(maximum: 64)))
    try region.fill(with: 1)
    // A writer may go on before its fault is counted; a collection waits for the count.
    let dirty = try tracker.collect()
    #expect(tracker.faultAroundWindow == 64)
    #expect(space.statistics.faultAroundWindow == 64)
    let statistics = space.statistics
    #expect(statistics.handlerThreadFaults < 40)
    #expect(statistics.openedPages == 1024)
    #expect(statistics.faultAroundPages == 1024 - statistics.handlerThreadFaults)
    #expect(dirty.count == 1024 && !dirty.isExact)
    #expect(dirty.exactPages.count == Int(statistics.handlerThreadFaults))
    try space.close()
  }

  @Test("Buckets of the latency histogram are within an eighth of the truth") func bucketsAreTight() {
    for value in [0, 1, 3, 4, 5, 7, 8, 100, 1_000, 1_500, 123_456, 10_000_000, 1 << 40] as [UInt64] {
      let middle = FaultCounters.middle(of: FaultCounters.bucket(value))
      #expect(middle + value / 8 + 1 >= value && middle <= value + value / 8 + 1, "\(value) → \(middle)")
    }
    #expect(FaultCounters.bucket(UInt64.max) == FaultCounters.bucketCount - 1)
    #expect(FaultCounters.Counter.allCases.count <= FaultCounters.Counter.allCasesCount)
  }

  @Test("The counters reach swift-metrics") func publishes() async {
    await #expect(processExitsWith: .success) {
      let metrics = TestMetrics()
      MetricsSystem.bootstrap(metrics)
      var configuration = AddressSpace.Configuration()
      configuration.metricsInterval = 0.05
      let space = try AddressSpace(configuration: configuration)
      let region = try space.map(.anonymous, pages: 32)
      let tracker = try region.trackWrites(.handlerThread)
      try region.fill(with: 1)
      try #require(try tracker.collect().count == 32)
      let deadline = Kernel.now() + 20_000_000_000
      while true {
        let faults = try? metrics.expectCounter("pinkit_faults", [("class", "anonymous"), ("delivery", "handler-thread")])
        let quantile = try? metrics.expectGauge("pinkit_fault_latency_seconds", [("percentile", "99")])
        if faults?.totalValue == 32, quantile?.lastValue ?? 0 > 0 { break }
        precondition(Kernel.now() < deadline, "\(faults?.values ?? []) faults were published")
      }
      try space.close()
    }
  }

  @Test("What was counted since the last time is published when the space closes") func publishesAtLast() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(300)
      let metrics = TestMetrics()
      MetricsSystem.bootstrap(metrics)
      var configuration = AddressSpace.Configuration()
      configuration.metricsInterval = 1e6
      let space = try AddressSpace(configuration: configuration)
      let region = try space.map(.pool, pages: 32)
      let tracker = try region.trackWrites(.handlerThread)
      try region.fill(with: 1)
      try #require(try tracker.collect().count == 32)
      try region.snapshot().close()
      try region.clone().unmap()
      try space.close()
      let last = space.statistics
      check([last.collections, last.snapshots, last.clones], is: [1, 1, 1])
      let faults = try metrics.expectCounter("pinkit_faults", [("class", "pool"), ("delivery", "handler-thread")]).totalValue
      check(faults, is: 32)
      for name in ["pinkit_collections", "pinkit_snapshots", "pinkit_clones"] {
        let counted = try metrics.expectCounter(name, [("class", "pool")]).totalValue
        check(counted, is: 1, name)
      }
    }
  }
}
