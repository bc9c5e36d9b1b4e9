import CTestSupport
import Testing

@testable import PinKit

@Suite("Pin verdicts of regions", .enabled(if: (try? SubmissionRing(entries: 1)) != nil, "needs io_uring, the oracle"))
struct RegionVerdictTests {
  @Test("P1/P2/K1: what a region says is what the kernel says of its memory", arguments: Subject.allCases)
  func regions(_ subject: Subject) throws {
    let space = try AddressSpace.forTests()
    try subject.with(space, pages: 2) { region in
      for access in PinVerdict.Access.allCases {
        for duration in PinVerdict.Duration.allCases {
          let verdict = try region.pinVerdict(for: access, lasting: duration)
          guard let kernel = try PinOracle.allows(region.addresses, access, duration) else { continue }
          #expect(verdict.isAllowed == kernel, "\(access) \(duration): \(verdict)")
        }
      }
      let found = try DirtyTracking.of(region.addresses)
      #expect(try region.needsDirtyTracking == found.contains(where: \.needsDirtyTracking))
      #expect(try region.wantsWriteNotify == found.contains(where: \.wantsWriteNotify))
      #expect(try region.needsDirtyTracking == (subject == .adoptedFile))
    }
    try space.close()
  }

  @Test(
    "P2: a tracked shared region wants to be notified while it is tracked, and needs no dirty tracking",
    arguments: Mechanisms.all)
  func tracked(_ mechanism: WriteTracking.Mechanism) throws {
    let space = try AddressSpace.forTests()
    let region = try space.map(.pool, pages: 2)
    #expect(try !region.wantsWriteNotify)
    let tracker = try region.trackWrites(mechanism)
    #expect(try region.wantsWriteNotify)
    #expect(try !region.needsDirtyTracking)
    #expect(try region.pinVerdict(for: .writing, lasting: .long).isAllowed)
    try tracker.stop()
    #expect(try !region.wantsWriteNotify)
    try space.close()
  }

  @Test(
    "P1: a mapping of a file is judged by its right, not by what a tracker has made of it",
    .enabled(if: ForeignMemory.isTemporaryDirectoryOnDisk, "needs /tmp on a disk"))
  func trackedFile() throws {
    let space = try AddressSpace.forTests()
    let memory = try ForeignMemory(.adoptedFile, pages: 2)
    defer { memory.unmap() }
    let region = try space.adopt(memory.range)
    let tracker = try region.trackWrites(.mprotect)
    #expect(try !DirtyTracking.of(region.addresses).contains(where: \.isWritable))
    #expect(try region.needsDirtyTracking)
    let verdict = try region.pinVerdict(for: .writing, lasting: .long)
    let error = #expect(throws: PinError.self) { try verdict.check("pin", region.addresses) }
    #expect(error?.code == .needsDirtyTracking)
    #expect(error?.range == region.addresses)
    #expect(error?.description.contains("must hear of a page before it is written") == true)
    #expect(error?.description.contains("Pin it for one operation only") == true)
    try region.pinVerdict(for: .writing, lasting: .short).check("pin")
    try tracker.stop()
    try space.close()
  }

  @Test("P1: a store is judged by its geometry, and long pins for reading are allowed") func stores() {
    func verdict(_ needsTracking: Bool, _ access: PinVerdict.Access, _ duration: PinVerdict.Duration) -> PinVerdict {
      let mapping = DirtyTracking(
        range: AddressRange(start: 0, end: 4096), memory: .store(needsDirtyTracking: needsTracking), isShared: true,
        isReadable: true, isWritable: true, isWriteProtectable: true)
      return PinVerdict(of: mapping, for: access, lasting: duration)
    }
    #expect(verdict(true, .writing, .long) == .refused(.needsDirtyTracking(.store(needsDirtyTracking: true))))
    #expect(verdict(true, .reading, .long).isAllowed && verdict(true, .writing, .short).isAllowed)
    #expect(verdict(false, .writing, .long).isAllowed)
  }
}
