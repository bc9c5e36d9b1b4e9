import CTestSupport
import Crypto
import Synchronization
import Testing

@testable import PinKit
@testable import PinKitCrypto

@Suite("The AES-GCM sealer") struct AESGCMSealerTests {
  @Test("S5: a sealed page differs everywhere, and opens to what it was", arguments: [1, 15, 16, 4096, 16384, 1 << 21])
  func roundTrip(_ count: Int) throws {
    let sealer = try AESGCMSealer(largestPage: 1 << 21)
    let page = SealedPage(count: count)
    let plain = randomBytes(count)
    for generation in 0..<3 as Range<UInt64> {
      page.content = plain
      page.identity.generation = generation
      try page.seal(sealer)
      let sealed = page.content
      if count >= 4096 {
        let same = zip(plain, sealed).count { $0 == $1 }
        #expect(same < count / 64, "\(same) bytes are the same")
      }
      try page.open(sealer)
      #expect(page.content == plain)
    }
  }

  @Test("S5: it is AES-256-GCM: swift-crypto's own interface opens what was sealed, and the other way round")
  func oracle() throws {
    let key = randomBytes(32)
    let sealer = try unsafe AESGCMSealer(key: KeyPage(count: 32) { unsafe $0.copyBytes(from: key) })
    let page = SealedPage(identity: PageIdentity(region: 0x0102_0304_0506_0708, page: 9, generation: 10))
    let plain = randomBytes(4096)
    let identity: [UInt8] = [8, 7, 6, 5, 4, 3, 2, 1, 9, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0]
    page.content = plain
    try page.seal(sealer)
    let (nonce, tag) = (page.recordContent[..<12], page.recordContent[12...])
    let box = try AES.GCM.SealedBox(nonce: .init(data: Array(nonce)), ciphertext: page.content, tag: Array(tag))
    let opened = try AES.GCM.open(box, using: SymmetricKey(data: key), authenticating: identity)
    #expect(Array(opened) == plain)

    let other = try AES.GCM.seal(plain, using: SymmetricKey(data: key), authenticating: identity)
    page.content = Array(other.ciphertext)
    page.recordContent = Array(other.nonce) + Array(other.tag)
    try page.open(sealer)
    #expect(page.content == plain)
  }

  @Test("No two nonces are the same, whichever threads seal")
  func nonces() throws {
    let sealer = try AESGCMSealer()
    let lists = Mutex<[[UInt8]]>([])
    try onThreads(4) { _ in
      let page = SealedPage(count: 16)
      var own: [[UInt8]] = []
      for _ in 0..<20_000 {
        try page.seal(sealer)
        own.append(Array(page.recordContent[..<12]))
      }
      lists.withLock { $0 += own }
    }
    #expect(Set(lists.withLock { $0 }).count == 80_000)
  }

  @Test("Each sealer's nonces start elsewhere, and go on by one")
  func firstNonces() throws {
    let page = SealedPage(count: 16)
    var nonces: [[UInt8]] = []
    for _ in 0..<100 {
      let sealer = try AESGCMSealer()
      for _ in 0..<2 {
        try page.seal(sealer)
        nonces.append(Array(page.recordContent[..<12]))
      }
    }
    #expect(Set(nonces).count == 200)
    // All of the 96 bits are used.
    for byte in 0..<12 { #expect(Set(nonces.map { $0[byte] }).count > 20, "byte \(byte)") }
  }

  @Test("A key that has sealed as many pages as it may seals no more, but opens")
  func limit() throws {
    let sealer = try AESGCMSealer(
      key: KeyPage(randomByteCount: 32), largestPage: 4096, alreadySealed: AESGCMSealer.sealLimit - 1)
    let page = SealedPage()
    let plain = randomBytes(4096)
    page.content = plain
    try page.seal(sealer)
    let last = SealedPage()
    last.content = plain
    for _ in 0..<3 {
      #expect(last.codeOfSealing(sealer) == .limitReached)
      #expect(last.content == plain)
    }
    try page.open(sealer)
    #expect(page.content == plain)
  }

  @Test("Sizes that make no sense are refused, and nothing is touched")
  func sizes() throws {
    let badKey = thrown { () throws(PinError) in _ = try AESGCMSealer(key: KeyPage(randomByteCount: 16)) }
    #expect(badKey == .invalidArgument)
    let sealer = try AESGCMSealer()
    let large = SealedPage(count: 8192)
    #expect(large.codeOfSealing(sealer) == .invalidArgument)
    let page = SealedPage()
    let short = unsafe UnsafeMutableRawBufferPointer(rebasing: page.record[..<27])
    let badRecord = thrown { () throws(PinError) in
      try unsafe sealer.seal(page.bytes, identity: page.identity, record: short)
    }
    #expect(badRecord == .invalidArgument)
    #expect(page.content.allSatisfy { $0 == 0 } && large.content.allSatisfy { $0 == 0 })
  }

  @Test("Closing waits for the calls under way: each succeeds wholly, or throws and changes nothing")
  func closing() throws {
    for _ in 0..<50 {
      let sealer = try AESGCMSealer(largestPage: 1 << 16)
      let (started, ended) = (Shared(), Shared())
      let closer = TestThread {
        while started.value < 3 { Kernel.relax() }
        sealer.close()
      }
      try onThreads(3) { _ in
        let page = SealedPage(count: 1 << 16)
        let plain = page.content
        started.add()
        while true {
          let code = page.codeOfSealing(sealer)
          #expect(code == nil || code == .keyGone)
          if code != nil { break }
          let sealed = page.content
          let opening = page.codeOfOpening(sealer)
          #expect(page.content == (opening == nil ? plain : sealed))
          if opening != nil { break }
        }
        ended.add()
      }
      try closer.join()
      #expect(ended.value == 3)
    }
  }

  @Test(
    "K2: sealing and opening allocate nothing",
    .enabled(if: ct_has_sanitizer() == 0, "a sanitizer has an allocator of its own"))
  func allocations() async {
    await #expect(processExitsWith: .success) {
      let sealer = try AESGCMSealer()
      let page = SealedPage()
      try page.seal(sealer)
      try page.open(sealer)
      ct_watch_allocations { Kernel.isInFaultPath ? 1 : 0 }
      Kernel.enterFaultPath()
      for _ in 0..<100 {
        try page.seal(sealer)
        try page.open(sealer)
      }
      Kernel.leaveFaultPath()
      let count = ct_watched_allocations()
      ct_watch_allocations { 0 }
      check(count, is: 0)
    }
  }
}
