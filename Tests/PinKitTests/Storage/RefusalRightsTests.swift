import CTestSupport
import Glibc
import Synchronization
import Testing

@testable import PinKit

@Suite("Rights of a page whose refusal is lifted") struct RefusalRightsTests {
  enum Right: String, CaseIterable, Sendable, Codable {
    case all, readOnly, none
    var access: PageAccess {
      switch self {
      case .all: .readWrite
      case .readOnly: .readOnly
      case .none: .none
      }
    }
  }

  @Test(
    "N3: when a refusal is lifted the page has the rights that protect(_:to:) left it, and no more",
    arguments: Right.allCases,
    [false, true])
  func lifted(_ right: Right, isFirst: Bool) async {
    await #expect(processExitsWith: .success) { [right = right as Right, isFirst = isFirst as Bool] in
      // Who may not read is refused by the processor already.
      if isFirst, right == .none { return }
      let space = try AddressSpace.forTriedFaults(deadline: 300)
      let store = UnrulyStore(pages: 16)
      let isBroken = Shared(1)
      store.set {
        $0.reading = { pages throws(PinError) in if pages.contains(5), isBroken.value == 1 { throw .broken } }
      }
      let region = try space.map(.file(store, fillAround: .exact), pages: 16)
      let source = region.attachments.find(FilePages.self)!
      let address = UInt64(region.addresses.start) + 5 * 4096
      if isFirst { try region.protect(5..<6, to: right.access) }
      check(ct_try_load(address), is: -SIGBUS)
      isBroken.value = 0
      if !isFirst { try region.protect(5..<6, to: right.access) }
      check(spin(forAtMost: 200) { source.refusals.withLock { $0.isEmpty } }, "nobody lifts the refusal")
      let mapping = try ProcessMaps.mappings(in: region.addressesUnchecked(of: 5..<6)).first!
      check(mapping.isReadable, is: right != .none)
      check(mapping.isWritable, is: right == .all)
      guard mapping.isWritable == (right == .all) else { return }
      check(ct_try_load(address), is: right == .none ? -SIGSEGV : 6)
      check(ct_try_store(address, 9), is: right == .all ? 0 : SIGSEGV)
      check(errorCode { try region.setByte(9, 5) }, is: right == .all ? nil : .accessDenied)
      try region.protect(5..<6, to: .readWrite)
      check(ct_try_load(address), is: right == .all ? 9 : 6)
      check(ct_try_store(address, 10), is: 0)
      try space.close()
      check(store.durableByte(5), is: 10)
    }
  }
  @Test(
    "S1: a sealed page that refused an access has, once it is open, the rights that protect(_:to:) left it, and no more",
    arguments: Right.allCases, [false, true])
  func opened(_ right: Right, isFirst: Bool) async {
    await #expect(processExitsWith: .success) { [right = right as Right, isFirst = isFirst as Bool] in
      // Who may not read is refused by the processor already.
      if isFirst, right == .none { return }
      let space = try AddressSpace.forTriedFaults(deadline: 300)
      let region = try space.map(.pool, pages: 16)
      try region.setSealer(RecordingSealer(), SealingOptions(onAccess: .fail))
      try region.fill(with: 6)
      try region.seal(0..<16)
      let address = UInt64(region.addresses.start) + 5 * 4096
      if isFirst { try region.protect(5..<6, to: right.access) }
      check(ct_try_load(address), is: -SIGBUS)
      if !isFirst { try region.protect(5..<6, to: right.access) }
      try region.makeAccessible(5..<6)
      let mapping = try ProcessMaps.mappings(in: region.addressesUnchecked(of: 5..<6)).first!
      check(mapping.isReadable, is: right != .none)
      check(mapping.isWritable, is: right == .all)
      guard mapping.isWritable == (right == .all) else { return }
      check(ct_try_load(address), is: right == .none ? -SIGSEGV : 6)
      check(ct_try_store(address, 9), is: right == .all ? 0 : SIGSEGV)
      try region.protect(5..<6, to: .readWrite)
      check(ct_try_store(address, 10), is: 0)
      check(ct_try_load(address + 4096), is: -SIGBUS)
      try space.close()
    }
  }
}
