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
      // While the region is there, a page takes as long as the processor goes round: there are few of them.
      let (threads, share, first) = (4, 500, 20)
      // A store's call lasts until another has begun, for which threads that spin wait for a processor.
      let space = try AddressSpace.forTests(patience: 120)
      let store = UnrulyStore(pages: threads * share)
      let region = try space.map(.file(store, fillAround: .exact), pages: threads * share)
      let file = region.attachments.find(FilePages.self)!
      let (asked, finished) = (Shared(), Shared())
      // There is always one at the store: each ends when another has begun, unless none can begin any more. Nobody gets beyond the first
      // of its pages before the region goes, however long that takes to begin.
      store.set {
        $0.isQuick = false
        $0.reading = { pages throws(PinError) in
          let mine = asked.add()
          while pages.lowerBound % share >= first, !file.isGoing.load(ordering: .acquiring) { sched_yield() }
          while finished.value < threads - 1, asked.value == mine, !file.isGoing.load(ordering: .acquiring) { sched_yield() }
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
          }
          finished.add()
        }
      }
      while begun.value < threads { sched_yield() }
      try region.unmap()
      for reader in readers { reader.join() }
      check(gone.value, is: threads, "the region went when all was read")
      try space.close()
    }
  }
}
