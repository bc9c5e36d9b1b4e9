import CTestSupport
import SystemPackage
import Testing

@testable import PinKit

@Suite("What a flush answers for") struct FlushAccountTests {
  @Test("W5: what was written while a sync ran that failed is lost with what it was to make durable") func meanwhile() throws
  {
    let account = try WriteAccount(pageCount: 100, mustSyncDirectory: false)
    let buffer = try PageBuffer(1)
    func write(_ page: Int) {
      let transfers = [buffer.transfer(page..<page + 1, at: 0)]
      account.end(account.begin(transfers), transfers) { _ in true }
    }
    write(7)
    let runs = account.beginSync()
    write(8)
    account.failed(runs)
    #expect(account.lost.runs == [7..<9], "the kernel reports the error of page 8 to nobody else")
    #expect(account.beginSync() == [])
    // Written again, each of them vouches for itself alone.
    write(8)
    #expect(account.lost.runs == [7..<8])
    write(7)
    #expect(account.lost.isEmpty)
    #expect(account.beginSync() == [7..<9])
  }

  @Test("The name of a file that was made is made durable by its first flush, or by the first that does not fail")
  func directory() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(120)
      let directory = try ImageDirectory()
      let store = try FileStore(path: directory("new"), creating: 8 * 4096)
      try store.put(1, 1)
      // The file's own comes first.
      for turn in 0..<3 {
        Injection.arm(.sync, .ioError, skip: 1)
        check(errorCode { try store.flush() }, is: .inputOutput, "turn \(turn)")
        check(Injection.count, is: 1, "turn \(turn)")
      }
      Injection.disarm()
      try store.flush()
      // Once it is durable it is not done again.
      Injection.arm(.sync, .ioError, skip: 1)
      try store.put(2, 1)
      try store.flush()
      check(Injection.count, is: 0)
      Injection.disarm()
      // Of a file that was there nobody needs to know.
      try RawFile.write([UInt8](repeating: 1, count: 8 * 4096), directory("old"))
      let old = try FileStore(path: directory("old"))
      try old.put(1, 1)
      Injection.arm(.sync, .ioError, skip: 1)
      try old.flush()
      check(Injection.count, is: 0)
      Injection.disarm()
    }
  }
}
