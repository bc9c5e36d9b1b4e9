internal import ArgumentParser
internal import PinKit
internal import Reports
internal import Terminal

/// `pinctl image`: looks into snapshot images, checks them, and turns them into plain files.
struct ImageCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "image", abstract: "Shows, verifies and restores snapshot images.",
    discussion: """
      An image is a file with the pages of a region and a header beside it, FILE.pinkit; it is named by the file. Whatever is wrong \
      with an image is printed with the file, the pages and what was expected, and ends the command with a status other than 0.
      """,
    subcommands: [ImageInfo.self, ImageVerify.self, ImageRestore.self])
}

struct ImageInfo: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "info", abstract: "Shows what images hold, from their headers. The pages are not read.")

  @Argument(help: ArgumentHelp("The images.", valueName: "image"), completion: .file()) var paths: [String]

  @Flag(help: "Print a JSON array with an object for each image.")
  var json = false

  func validate() throws {
    if paths.isEmpty { throw ValidationError("Name an image.") }
  }

  func run() throws {
    let reports = try paths.map { try ImageReport(SnapshotImage(path: $0)) }
    Output.line(json ? try reports.json() : reports.map { $0.text() }.joined(separator: "\n\n"))
  }
}

struct ImageVerify: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "verify", abstract: "Reads every page of images and checks it against the checksums.",
    discussion: "Each image is checked by itself, in any order; `restore` also checks that they belong together.")

  @Argument(help: ArgumentHelp("The images.", valueName: "image"), completion: .file()) var paths: [String]

  func validate() throws {
    if paths.isEmpty { throw ValidationError("Name an image.") }
  }

  func run() throws {
    for path in paths {
      let image = try SnapshotImage(path: path)
      try image.verify()
      Output.line("\(path): all \(image.storedPages.count) stored pages are as they were written")
    }
  }
}

struct ImageRestore: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "restore",
    abstract: "Writes the bytes of the region, as the last of the images has them, to a plain sparse file.",
    discussion: """
      All images are verified before a byte is written, and the file has its name only when it is whole and on the disk.
      """)

  @Argument(help: ArgumentHelp("The full image.", valueName: "full"), completion: .file()) var full: String
  @Argument(
    help: ArgumentHelp("Its increments, in the order in which they were made.", valueName: "increment"), completion: .file())
  var increments: [String] = []

  @Option(help: ArgumentHelp("The file to write.", valueName: "file"), completion: .file()) var to: String

  @Flag(help: "Replace the file if there is one.")
  var replace = false

  func run() throws {
    let chain = try ([full] + increments).map { try SnapshotImage(path: $0) }
    try SnapshotImage.compose(chain, to: to, replacing: replace)
    Output.line("\(to): \(chain[0].byteCount) bytes from \(chain.count) \(chain.count == 1 ? "image" : "images")")
  }
}
