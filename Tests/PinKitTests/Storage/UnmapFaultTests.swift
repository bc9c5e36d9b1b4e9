import CTestSupport
import Glibc
import Synchronization
import Testing

@testable import PinKit

@Suite("Unmapping a region of a slow store beside threads that fault") struct UnmapFaultTests {
  @Test("K5: the end of a region does not wait for threads that go on touching pages") func goesOn() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(600)
      _ = ct_handle(SIGSEGV, CInt(ct_plain))
      let (threads, share, first) = (4, 1000, 20)
      // A store's call lasts until another has begun, for which threads that spin wait for a processor.
      let space = try AddressSpace.forTests(patience: 120)
      let store = UnrulyStore(pages: threads * share)
      let region = try space.map(.file(store, fillAround: .exact), pages: threads * share)
      let file = region.attachments.find(FilePages.self)!
      let (asked, waiting, finished, goes) = (Shared(), Shared(), Shared(), Shared())
      // There is always one at the store: each ends when another has begun, unless none can begin any more. Nobody gets beyond the first
      // of its pages before the region is to go, however long that takes to begin.
      store.set {
        $0.isQuick = false
        $0.reading = { pages throws(PinError) in
          let mine = asked.add()
          while asked.value == mine, !file.isGoing.load(ordering: .acquiring) {
            let others = finished.value + (goes.value == 0 ? waiting.value : 0)
            if others == threads - 1 { break }
            sched_yield()
          }
        }
      }
      let start = UInt64(region.addresses.start)
      let (begun, gone) = (Shared(), Shared())
      let readers = (0..<threads).map { thread in
        HostThread {
          for page in thread * share..<(thread + 1) * share {
            if ct_try_load(start + UInt64(page * 4096)) < 0 {
              gone.add()
              break
            }
            if page % share == 2 { begun.add() }
            if page % share == first {
              waiting.add()
              while goes.value == 0 { sched_yield() }
            }
          }
          finished.add()
        }
      }
      while begun.value < threads { sched_yield() }
      goes.value = 1
      try region.unmap()
      for reader in readers { reader.join() }
      check(gone.value, is: threads, "the region went when all was read")
      try space.close()
    }
  }
}
