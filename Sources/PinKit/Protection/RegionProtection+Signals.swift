internal import Logging
internal import Synchronization

extension RegionProtection {
  /// The kernel ends a process whose thread blocks the signal of a fault, before any code of the program's runs: whoever arms hears of such
  /// threads, once per process and signal. Says nothing where `/proc` cannot be read, and of threads that come later.
  func warnOfBlockedSignals(_ delivery: FaultDelivery) {
    guard delivery == .inPlace || delivery == .mprotect else { return }
    let name = delivery == .inPlace ? "SIGBUS" : "SIGSEGV"
    let (count, first) = ThreadMasks.blocking(delivery == .inPlace ? 7 : 11)
    guard count > 0, Self.isNews(delivery) else { return }
    let threads = first.joined(separator: ", ") + (count > first.count ? ", …" : "")
    handler.logger.notice(
      "\(count) threads of this process block \(name) (\(threads)): a write of theirs to \(addresses), which is protected by .\(delivery) now, ends the process. Leave SIGSEGV and SIGBUS out of what they block (sigdelset before pthread_sigmask), or use .handlerThread."
    )
  }

  private static let toldOfBus = Atomic<UInt32>(0)
  private static let toldOfSegmentation = Atomic<UInt32>(0)
  private static func isNews(_ delivery: FaultDelivery) -> Bool {
    let now = Kernel.forkGeneration + 1  // a child of fork() is another process
    if delivery == .inPlace { return toldOfBus.exchange(now, ordering: .relaxed) != now }
    return toldOfSegmentation.exchange(now, ordering: .relaxed) != now
  }
}
