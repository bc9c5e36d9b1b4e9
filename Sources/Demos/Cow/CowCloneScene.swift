internal import PinKit
internal import Terminal

/// A template cloned many times; each clone writes a few pages, and everything is counted.
struct CowCloneScene: DemoScene {
  let title = "a template and its clones"
  var cloneCount = 24

  func run(on stage: DemoStage) throws -> DemoFindings {
    let space = try DemoSpace.make()
    let farm = try CowCloneFarm(space: space, cloneCount: cloneCount)
    stage.say(
      "A template of \(farm.pageCount.grouped) pages gets \(counted(cloneCount, "clone")), and each writes a few pages, most of them where "
        + "the others write too. A clone copies nothing until it is written; a write copies its page, and where many pages are being "
        + "written a few neighbours.")
    try farm.fill()
    try farm.makeClones()
    let written = try farm.writePages()
    let wrong = try farm.wrongPages()
    let map = try CowFrameMap(farm.regions)
    let kernel = try CowKernelCounts.compare(farm.regions)
    stage.show()
    for line in farm.lines(written: written, map: map) { stage.show("  " + line) }
    stage.draw(map.picture(stage))
    for line in map.histogram(stage) { stage.show("  " + line) }
    stage.show()
    let copies = farm.copies
    let mappings = farm.mappingsPerClone
    let resident = farm.residentAfterWrites
    try farm.unmapAll()
    let end = farm.pool.usage

    var found = DemoFindings()
    found.claims = Self.judge(
      .init(
        residentBefore: farm.residentBefore, residentAfterClones: farm.residentAfterClones,
        copiesByCloning: farm.copiesByCloning, residentAfterWrites: resident, distinctFrames: map.distinctFrames,
        wrong: wrong, checked: farm.regions.count * farm.pageCount,
        left: [end.extents, end.countedFrames, end.mappers, end.residentBytes], pageSize: farm.regions[0].pageSize,
        clones: cloneCount))
    switch kernel {
    case .compared(let frames, let differing): found.claims.append(Self.judge(frames: frames, differing: differing))
    case .unreadable(let reason):
      found.skipped.append(.init(subject: "/proc/kpagecount", reason: reason))
      stage.say("The kernel's map counts cannot be read here: \(reason)")
    }
    stage.show(found.claims)
    found.measurements = [
      .init(subject: "clone", name: "time", value: farm.cloneNanoseconds / 1e3, unit: "µs"),
      .init(subject: "clone", name: "mappings", value: mappings, unit: "of the kernel's"),
      .init(subject: "clones", name: "pages written", value: Double(written), unit: "pages"),
      .init(subject: "clones", name: "pages copied", value: Double(copies), unit: "pages"),
      .init(subject: "pool", name: "memory", value: Double(resident), unit: "bytes"),
    ]
    try space.close()
    return found
  }

  /// What was counted.
  struct Counts {
    var residentBefore: Int
    var residentAfterClones: Int
    var copiesByCloning: Int
    var residentAfterWrites: Int
    var distinctFrames: Int
    var wrong: Int
    var checked: Int
    /// What is left when all are unmapped: extents, counted frames, mappers, bytes.
    var left: [Int]
    var pageSize: Int
    var clones: Int
  }

  static func judge(_ counts: Counts) -> [Claim] {
    [
      Claim(
        contract: "K1", claim: "making clones takes no memory, and copies nothing",
        holds: counts.residentBefore > 0 && counts.residentAfterClones == counts.residentBefore
          && counts.copiesByCloning == 0,
        evidence:
          "\(counts.residentBefore.grouped) bytes before, \(counts.residentAfterClones.grouped) after \(counted(counts.clones, "clone")); "
          + "\(counts.copiesByCloning) pages copied."),
      Claim(
        contract: "W5", claim: "every region has its own bytes, and the template's where it did not write",
        holds: counts.checked > 0 && counts.wrong == 0,
        evidence: "\(counts.wrong) of \(counts.checked.grouped) pages hold something else."),
      Claim(
        contract: "K1", claim: "the pool takes the memory of its frames, and no more",
        holds: counts.distinctFrames > 0 && counts.residentAfterWrites == counts.distinctFrames * counts.pageSize,
        evidence:
          "\(counts.distinctFrames.grouped) different frames in all regions are \((counts.distinctFrames * counts.pageSize).grouped) "
          + "bytes; the kernel says \(counts.residentAfterWrites.grouped)."),
      Claim(
        contract: "K1", claim: "when all are unmapped, every count is zero and all memory is given back",
        holds: counts.left == [0, 0, 0, 0],
        evidence:
          zip(counts.left, ["extents", "counted frames", "mappers", "bytes"]).map { "\($0) \($1)" }.joined(separator: ", ")
          + "."),
    ]
  }

  static func judge(frames: Int, differing: [CowKernelCounts.Difference]) -> Claim {
    let first = differing.first.map { " First: frame \($0.frame): \($0.ours) mappings, the kernel says \($0.kernel)." } ?? ""
    return Claim(
      contract: "K1", claim: "map counts are those of /proc/kpagecount", holds: frames > 0 && differing.isEmpty,
      evidence: "Of \(frames.grouped) frames \(differing.count) differ." + first)
  }
}
