package import PinKit

/// What `pinctl image info` prints.
package struct ImageReport: Codable, Hashable {
  var path: String
  var kind: String
  var identity: String
  var parent: String?
  /// In bytes.
  var pageSize: Int
  var pageCount: Int
  /// The region's size.
  var byteCount: Int
  var storedPages: Int
  /// Maximal runs of stored pages.
  var runs: Int
  /// What the file takes of its file system, in bytes.
  var allocatedBytes: Int
  var backing: String

  package init(_ image: SnapshotImage) throws {
    path = image.path
    kind = image.kind.rawValue
    identity = image.identity.description
    parent = image.parent?.description
    pageSize = image.pageSize
    pageCount = image.pageCount
    byteCount = image.byteCount
    storedPages = image.storedPages.count
    runs = image.storedPages.runs.count
    allocatedBytes = try image.allocatedBytes()
    backing = image.backing
  }

  package func text() -> String {
    let rows = [
      ("kind", parent.map { "increment of \($0)" } ?? "full"), ("identity", identity),
      ("region", "\(pageCount) pages of \(pageSize) bytes, \(byteCount) bytes"),
      ("stored", "\(storedPages) pages in \(runs) \(runs == 1 ? "run" : "runs")"),
      ("on disk", "\(allocatedBytes) bytes"), ("backing", backing),
    ]
    return ([path] + rows.map { "  " + $0.0 + String(repeating: " ", count: 10 - $0.0.count) + $0.1 }).joined(
      separator: "\n")
  }
}
