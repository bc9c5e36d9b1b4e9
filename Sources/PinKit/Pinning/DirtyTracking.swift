extension Region {
  /// Whether writes must not go around the file that the memory is of, for longer than a call takes (P1).
  var refusesLongTermWrites: Bool {
    if case .adopted(.file(_, isShared: true)) = backing.kind { return true }
    return false
  }

  func requireLongTerm(_ options: PinOptions) throws(PinError) {
    guard options.isSuperset(of: [.write, .longTerm]), refusesLongTermWrites else { return }
    throw PinError(
      .needsDirtyTracking, operation: "pin", range: addresses,
      advice:
        "The backing is \(backing): its file system must be told before a page is written, and a long-term pin writes without. Pin for reading, pin without .longTerm for as long as one transfer takes, or use memory of a memfd, tmpfs, hugetlbfs or a private mapping."
    )
  }
}
