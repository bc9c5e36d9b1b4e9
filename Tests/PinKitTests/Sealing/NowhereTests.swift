import CSealing
import CTestSupport
import Testing

@testable import PinKit
@testable import PinKitCrypto

/// What is left of plain bytes and keys in the memory of the process.
@Suite("Plain bytes are nowhere", .enabled(if: ct_has_sanitizer() == 0, "a sanitizer keeps copies, and maps terabytes"))
struct NowhereTests {
  @Test("The scan finds what is there: in a mapping, on the heap, in freed heap, and on a stack")
  func control() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(100)
      let secret = MemoryScan(count: 4096)
      secret.expectNowhere("before it is anywhere")
      let page = SealedPage()
      unsafe secret.place(in: page.bytes)
      check(secret.places(of: 0..<32), is: [UInt64(page.address.start)])
      check(secret.places(of: 4080..<4096), is: [UInt64(page.address.start) + 4080])

      let small = MemoryScan(count: 48)
      let heap = UnsafeMutableRawBufferPointer.allocate(byteCount: 1 << 16, alignment: 16)
      let inside = unsafe UnsafeMutableRawBufferPointer(rebasing: heap[(1 << 15)...])
      unsafe small.place(in: inside)
      check(small.places().count, is: 3)
      unsafe heap.deallocate()
      check(small.places(of: 0..<16).count, is: 1, "in freed heap")

      let stacked = MemoryScan(count: 32)
      unsafe withUnsafeTemporaryAllocation(byteCount: 32, alignment: 16) { bytes in
        unsafe stacked.place(in: bytes)
        check(stacked.places(of: 0..<32).count, is: 1, "on the stack")
        unsafe bytes.initializeMemory(as: UInt8.self, repeating: 0)
      }
    }
  }

  @Test("S5: after sealing, on whatever threads, and after opening that failed, no piece of the page is anywhere")
  func nowhere() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(100)
      let sealer = try AESGCMSealer()
      let secret = MemoryScan(count: 4096)
      let (arrived, done) = (Shared(), Shared())
      try onThreads(4) { thread in
        let page = SealedPage(identity: PageIdentity(region: 1, page: thread, generation: 0))
        for generation in 0..<200 as Range<UInt64> {
          unsafe secret.place(in: page.bytes)
          page.identity.generation = generation
          try page.seal(sealer)
          try page.open(sealer)
          let isBack = unsafe secret.isAt(UnsafeRawBufferPointer(page.bytes))
          check(isBack, "opened to something else")
          try page.seal(sealer)
          unsafe page.bytes[4095] ^= 1
          check(page.codeOfOpening(sealer), is: .tampered)
          unsafe page.bytes[4095] ^= 1
        }
        // All are sealed, and the stacks that they were sealed on are still there.
        arrived.add()
        if thread == 0 {
          while arrived.value < 4 { Kernel.relax() }
          secret.expectNowhere("on four threads")
          try page.open(sealer)
          check(secret.places(of: 0..<32), is: [UInt64(page.address.start)])
          try page.seal(sealer)
          done.value = 1
        }
        while done.value == 0 { Kernel.pause(nanoseconds: 1_000_000) }
      }
      let last = SealedPage()
      unsafe secret.place(in: last.bytes)
      try last.seal(sealer)
      secret.expectNowhere("after all")
      unsafe last.record[20] ^= 1
      check(last.codeOfOpening(sealer), is: .tampered)
      secret.expectNowhere("after a failed open")
    }
  }

  /// Below the sealer: what it does when opening fails would cover most of what is looked for.
  @Test("S5: nor what the dynamic linker saved of the registers when the first opening failed")
  func firstFailure() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(100)
      let secret = MemoryScan(count: 4096)
      check(secret.piecesBelow(), is: 0, "before it is anywhere")
      let (page, scratch) = (SealedPage(), SealedPage())
      let schedule = unsafe UnsafeMutableRawPointer(bitPattern: UInt(ct_map_anonymous(UInt64(cseal_schedule_bytes()), 0)))!
      let zeros = [UInt8](repeating: 0, count: 32)
      unsafe check(cseal_expand(schedule, zeros), is: 1)
      unsafe secret.place(in: page.bytes)
      let tag = unsafe page.record.baseAddress!.assumingMemoryBound(to: UInt8.self)
      unsafe check(cseal_seal(schedule, zeros, zeros, 24, page.bytes.baseAddress!, 4096, tag), is: 1)
      check(secret.piecesBelow(), is: 0, "after sealing")
      unsafe tag[0] ^= 1
      let opened = unsafe cseal_open(
        schedule, zeros, zeros, 24, page.bytes.baseAddress!, 4096, tag, scratch.bytes.baseAddress!)
      check(secret.piecesBelow(), is: 0, "after an opening that failed")
      check(opened, is: 0)
    }
  }

  private final class Call: @unchecked Sendable {  // Sendable: used by one thread.
    let sealer: AESGCMSealer
    let page = SealedPage()
    var opens = false
    init(key: MemoryScan) throws(PinError) {
      sealer = try unsafe AESGCMSealer(key: KeyPage(count: 32) { unsafe key.place(in: $0) })
    }

    /// What the vector registers hold after sealing or opening.
    func registers() -> [UInt8] {
      var registers = [UInt8](repeating: 0, count: 2048)
      let context = unsafe Unmanaged.passUnretained(self).toOpaque()
      let count = unsafe ct_vector_registers_after(
        {
          let call = unsafe Unmanaged<Call>.fromOpaque($0!).takeUnretainedValue()
          if call.opens { try? call.page.open(call.sealer) } else { try? call.page.seal(call.sealer) }
        }, context, &registers)
      return Array(registers[..<Int(count)])
    }
  }

  @Test("S5: nor in a vector register, from which the next signal would write it to a stack")
  func registers() throws {
    let key = MemoryScan(count: 32)
    let call = try Call(key: key)
    let secret = MemoryScan(count: 4096)
    unsafe secret.place(in: call.page.bytes)
    #expect(secret.pieces(in: call.page.content) == 256)
    for opens in [false, true] {
      call.opens = opens
      let registers = call.registers()
      #expect(secret.pieces(in: registers) == 0, "of the page, opening \(opens)")
      #expect(key.pieces(in: registers) == 0, "of the key, opening \(opens)")
    }
    #expect(secret.pieces(in: call.page.content) == 256)
  }

  @Test(
    "S5: a key is nowhere but in the key page: not where it came from, nor in what sealing leaves behind",
    arguments: [true, false])
  func keys(_ isSecretMemory: Bool) async {
    await #expect(processExitsWith: .success) { [isSecretMemory = isSecretMemory as Bool] in
      ct_deadline(100)
      if !isSecretMemory { KeyPageTests.refuseSecretMemory() }
      let key = MemoryScan(count: 32)
      let source = UnsafeMutableRawBufferPointer.allocate(byteCount: 32, alignment: 1)
      unsafe key.place(in: source)
      let sealer = try unsafe AESGCMSealer(key: KeyPage(moving: source))
      let page = SealedPage()
      for _ in 0..<50 {
        try page.seal(sealer)
        try page.open(sealer)
      }
      // The first half of an expanded key is the key.
      let there = sealer.keyProtection == .secretMemory ? 0 : 1
      check(key.places(of: 0..<32).count, is: there)
      sealer.close()
      key.expectNowhere("after closing")
      unsafe source.deallocate()
    }
  }
}
