/// How much is protected under one hold of the wrprotect lock before a moment.
struct ArmingSlice: Sendable {
  /// Neighbours at first: a system call protects so many small pages in a tenth of a millisecond.
  var pages: Int
  /// Neighbours at most: on huge pages it protects many more.
  var mostPages: Int
  /// Each takes a system call, as dear as a hundred pages.
  var runs: Int

  /// How large the next slice is to be after one that took so many nanoseconds.
  func next(after size: Int, took time: UInt64) -> Int {
    time < 50_000 ? min(2 * size, mostPages) : time > 200_000 ? pages : size
  }
}
