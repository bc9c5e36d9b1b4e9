extension SnapshotImage {
  /// Checks that the images can be restored in this order: a full image, then increments, each on top of the one before it, all
  /// of regions of the same size. Reads nothing.
  ///
  /// - Throws: ``PinError``: `.geometryMismatch` for another page size or count, `.brokenChain` for everything else; it names the
  ///   image that does not fit, and the one that would.
  public static func validate(_ chain: [SnapshotImage]) throws(PinError) {
    guard let first = chain.first else {
      throw PinError(.brokenChain, operation: "restore from no image", advice: "Name a full image, then its increments.")
    }
    var places: [SnapshotIdentity: Int] = [:]
    for (index, image) in chain.enumerated() {
      if let other = places.updateValue(index, forKey: image.identity) {
        throw image.doesNotFit("It is image \(image.identity), as \(chain[other].path) is already. Name every image once.")
      }
      try image.requireGeometry(pageSize: first.pageSize, pageCount: first.pageCount, of: first.path)
    }
    if let parent = first.parent {
      throw first.doesNotFit(
        "It is an increment of \(whereabouts(of: parent, in: chain, places)). A full image comes first.")
    }
    for (previous, image) in zip(chain, chain.dropFirst()) {
      guard let parent = image.parent else {
        throw image.doesNotFit("It is a second full image. Begin with it, and leave out what comes before.")
      }
      guard parent == previous.identity else {
        throw image.doesNotFit(
          "It comes behind \(previous.path), which is image \(previous.identity), and is an increment of "
            + "\(whereabouts(of: parent, in: chain, places)). Name the images in the order in which they were made.")
      }
    }
  }

  private static func whereabouts(
    of identity: SnapshotIdentity, in chain: [SnapshotImage], _ places: [SnapshotIdentity: Int]
  ) -> String {
    places[identity].map { "\(chain[$0].path), image \(identity)" } ?? "image \(identity), which was not named"
  }

  private func doesNotFit(_ why: String) -> PinError {
    PinError(.brokenChain, operation: "restore from \(path)", advice: why)
  }

  /// `other` is what an error calls whoever has that geometry.
  func requireGeometry(pageSize: Int, pageCount: Int, of other: String) throws(PinError) {
    guard pageSize != self.pageSize || pageCount != self.pageCount else { return }
    throw PinError(
      .geometryMismatch, operation: "restore from \(path)",
      advice: "It holds \(self.pageCount) pages of \(self.pageSize) bytes, and \(other) has \(pageCount) of \(pageSize).")
  }

  /// Of every image of a chain, the pages that no later image holds.
  static func newestPages(of chain: [SnapshotImage]) -> [DirtySet] {
    var result: [DirtySet] = []
    var covered = DirtySet(pageCount: chain[0].pageCount)
    for image in chain.reversed() {
      result.append(image.storedPages.subtracting(covered))
      covered.formUnion(image.storedPages)
    }
    return result.reversed()
  }
}
