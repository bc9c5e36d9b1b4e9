extension DirtySet: Codable {
  private enum Field: CodingKey { case pageCount, runs, faultAroundRuns }

  public func encode(to encoder: any Encoder) throws {
    var fields = encoder.container(keyedBy: Field.self)
    try fields.encode(pageCount, forKey: .pageCount)
    try fields.encode(runs, forKey: .runs)
    try fields.encode(faultAroundRuns, forKey: .faultAroundRuns)
  }

  /// Refuses runs that lie outside the region, touch or are out of order, and fault-around pages that are not in the set.
  public init(from decoder: any Decoder) throws {
    let fields = try decoder.container(keyedBy: Field.self)
    let pageCount = try fields.decode(Int.self, forKey: .pageCount)
    let runs = try fields.decode([Range<Int>].self, forKey: .runs)
    let around = try fields.decode([Range<Int>].self, forKey: .faultAroundRuns)
    func refuse(_ key: Field, _ text: String) -> DecodingError {
      .dataCorruptedError(forKey: key, in: fields, debugDescription: text)
    }
    guard pageCount >= 0 else { throw refuse(.pageCount, "a negative number of pages") }
    for (key, list) in [(Field.runs, runs), (.faultAroundRuns, around)] {
      var last = -1
      for run in list {
        guard run.lowerBound > last, !run.isEmpty, run.upperBound <= pageCount else {
          throw refuse(key, "run \(run) is out of order, empty or outside the region")
        }
        last = run.upperBound
      }
    }
    self.init(pageCount: pageCount)
    for run in runs { append(run) }
    guard DirtySet(pageCount: pageCount, runs: around).subtracting(self).isEmpty else {
      throw refuse(.faultAroundRuns, "pages that are not in the set")
    }
    setFaultAround(around)
  }
}
