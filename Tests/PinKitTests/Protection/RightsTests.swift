import CTestSupport
import Glibc
import Synchronization
import Testing

@testable import PinKit

/// What `protect(_:to:)` took away comes back with `protect(_:to:)` alone: whatever faults, drops or fails meanwhile.
@Suite("Rights that were taken away") struct RightsTests {
  @Test(
    "W1, K7: an open page that is hidden stays so when a fault opens its surroundings to save mappings", arguments: [12, 8])
  func widened(_ page: Int) async {
    await #expect(processExitsWith: .success) { [page = page as Int] in
      ct_deadline(280)
      let tracked = try Tracked(.mprotect, pages: 32)
      ct_store(tracked.address(of: 10), 5)
      MappingBudget.add(1 << 30)
      try tracked.region.protect(10..<11, to: .none)
      // As far as the next page that is open it would be opened with those between.
      ct_store(tracked.address(of: page), 5)
      checkSystemCallFails(at: tracked.address(of: 10))
      try check(tracked.tracker.collect().contains(page), "the write is in no set")
      MappingBudget.add(-1 << 30)
      try tracked.close()
    }
  }

  @Test("W1, K3: of a region that fails nothing is opened that was hidden") func failed() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(280)
      let space = try AddressSpace.forTests()
      let region = try space.map(.pool, pages: 8)
      try region.fill(with: 1)
      let clone = try region.clone()
      try clone.protect(1..<3, to: .none)
      try clone.protect(4..<5)
      let protection = clone.attachments.find(RegionProtection.self)!
      protection.fail(.readerDied)
      protection.releaseAfterFailure()
      let rights = try (0..<8).map { try ProcessMaps.mappings(in: clone.addressesUnchecked(of: $0..<$0 + 1)).first! }
      check(rights.map(\.isReadable), is: [true, false, false, true, true, true, true, true])
      check(rights.allSatisfy { !$0.isWritable }, "others' frames may be written")
      check(clone.peek(0), is: 1)
    }
  }

  @Test("K3: a region that failed gives nobody a right back who had waited for it")
  func failedMeanwhile() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(280)
      let space = try AddressSpace.forTests()
      let region = try space.map(.file(UnrulyStore(pages: 16)), pages: 16)
      let protection = region.attachments.find(RegionProtection.self)!
      let mayGoOn = Shared()
      TestHooks.set(.deciding) { page in if page == 7 { _ = spin { mayGoOn.value == 1 } } }
      _ = region.peek(7)
      let address = UInt64(region.addresses.start) + 7 * 4096
      // By a system call: what the region has become is no signal then.
      let writer = TestThread {
        var pipes: [CInt] = [0, 0]
        check(unsafe pipe(&pipes), is: 0)
        var byte: UInt8 = 9
        check(unsafe Glibc.write(pipes[1], &byte, 1), is: 1)
        check(unsafe Glibc.read(pipes[0], UnsafeMutableRawPointer(bitPattern: UInt(address)), 1), is: -1)
        for end in pipes { Glibc.close(end) }
      }
      check(spin(forAtMost: 200) { region.table[7].contains(.claimed) }, "nobody writes")
      let found = Mutex<PinError.Code?>(nil)
      let changer = TestThread {
        let code = errorCode { try region.protect(3..<4) }
        found.withLock { $0 = code }
      }
      check(spin(forAtMost: 200) { unsafe protection.domain.pointee.lock.hasWriter }, "nobody takes the right away")
      protection.fail(.readerDied)
      // Whoever is in the middle of a fault is waited for, and not for ever.
      check(
        spin(forAtMost: 200) { unsafe protection.domain.pointee.delivery.load(ordering: .acquiring) == .none },
        "the region stays as it was")
      mayGoOn.value = 1
      TestHooks.set(.deciding, nil)
      try changer.join()
      check(found.withLock { $0 }, is: .handlerLost)
      checkSystemCallFails(at: UInt64(region.addresses.start) + 3 * 4096)
      try writer.join()
    }
  }

  @Test("K3: a region that fails in the middle of a change of rights stays closed", arguments: [false, true])
  func failedInBetween(_ tries: Bool) async {
    await #expect(processExitsWith: .success) { [tries = tries as Bool] in
      ct_deadline(280)
      let space = try AddressSpace.forTests()
      let region = try space.map(.file(UnrulyStore(pages: 16)), pages: 16)
      let protection = region.attachments.find(RegionProtection.self)!
      let subscription = try region.subscribe(
        RecordingNotifier({ _ in
          protection.fail(.readerDied)
          protection.releaseAfterFailure()
          return .done
        }))
      let code = errorCode { if tries { _ = try region.tryProtect(3..<4) } else { try region.protect(3..<4) } }
      check(code, is: .handlerLost)
      checkSystemCallFails(at: UInt64(region.addresses.start) + 3 * 4096)
      subscription.remove()
    }
  }

  @Test("K3: who opens pages together with others gives back the claims that it has, of a region that fails, too")
  func claimOfAnother() async {
    await #expect(processExitsWith: .success) {
      ct_deadline(280)
      let isTold = Shared()
      let mayGoOn = Shared()
      let tracked = try Tracked(
        .mprotect, pages: 32,
        onFirstWrite: { write in
          // The first of those that are opened along with the page that is written.
          guard write.page == 0 else { return }
          isTold.value = 1
          _ = spin { mayGoOn.value == 1 }
        }, configure: { $0.failurePolicy = .failRegion })
      ct_store(tracked.address(of: 10), 5)
      MappingBudget.add(1 << 30)
      let address = tracked.address(of: 12)
      let writer = TestThread { ct_store(address, 5) }
      _ = spin { isTold.value == 1 }
      let table = tracked.region.table
      check(table.tryClaim(10).contains(.claimed), is: false)
      let protection = tracked.region.attachments.find(RegionProtection.self)!
      protection.fail(.readerDied)
      check(
        spin(forAtMost: 200) { unsafe protection.domain.pointee.delivery.load(ordering: .acquiring) == .none },
        "the region stays as it was")
      mayGoOn.value = 1
      try writer.join()
      check(table[10].contains(.claimed), "the claim was somebody else's")
      table.releaseClaim(10)
    }
  }

  @Test(
    "W1: a page that is hidden while it is being dropped is empty, and stays hidden",
    arguments: [PageAccess.none, .readOnly])
  func dropped(_ access: PageAccess) throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 8)
    try region.fill(with: 1)
    let clone = try region.clone()
    let changes = Shared()
    let subscription = try region.subscribe(
      RecordingNotifier({ range in
        guard range.event == .clear, changes.add() == 1 else { return .done }
        let thread = TestThread { try region.protect(1..<3, to: access) }
        try thread.join()
        return .done
      }))
    try region.discard(0..<4)
    #expect(changes.value == 1)
    let rights = try (0..<4).map { try ProcessMaps.mappings(in: region.addressesUnchecked(of: $0..<$0 + 1)).first! }
    #expect(rights.map(\.isReadable) == [true, access != .none, access != .none, true])
    #expect(rights.map(\.isWritable) == [true, false, false, true])
    subscription.remove()
    try region.protect(1..<3, to: .readWrite)
    #expect((0..<8).map { region.peek($0) } == [0, 0, 0, 0, 1, 1, 1, 1])
    #expect((0..<8).allSatisfy { clone.peek($0) == 1 })
    region.poke(3, 1)
    try space.close()
  }

  @Test("N3: what the program may do and cannot at this moment is no error of its own; what it may not do is")
  func signals() throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.file(UnrulyStore(pages: 8)), pages: 8)
    for page in 0..<8 { _ = region.peek(page) }
    try region.protect(3..<4)
    let domain = unsafe UnsafeMutableRawPointer(region.attachments.find(RegionProtection.self)!.domain)
    let source = region.attachments.find(FilePages.self)!
    let address = UInt64(region.addresses.start) + 3 * 4096
    func answer(isWrite: Bool) -> CInt { unsafe InPlaceDelivery.resolver(domain, address, isWrite ? 1 : 0) }
    // The refusal was lifted while the signal was on its way.
    #expect(answer(isWrite: false) == 1)
    #expect(answer(isWrite: true) == 0)
    source.refused.insert(3..<4)
    #expect(answer(isWrite: false) == SignalFaults.busError)
    #expect(answer(isWrite: true) == 0)
    source.refused.remove(3..<4)
    try space.close()
  }
}
