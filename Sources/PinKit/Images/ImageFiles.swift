/// The two files of an image that is being written, and the order in which they come to be.
///
/// 1. `<path>.partial` is made and locked; the pages are written to it, and it is synced.
/// 2. `<path>.pinkit.partial`, the header, is written and synced.
/// 3. Of an image to be replaced, first the header is removed, then the pages; the directory is synced.
/// 4. The header gets its name.
/// 5. The pages get their name, and with it the lock is given up. The directory is synced.
///
/// A process that dies before 3 leaves what was there before. Between 3 and 5 there is a header without pages, or neither, and
/// neither is taken for an image. Step 5 is one rename: the image is there, and whole. After a power failure names may be lost in any
/// order, save that those of 3 are gone for good; a name that is there has the synced content of its file.
struct ImageFiles: ~Copyable {
  private var data: PartialFile
  private let path: String
  private let replacing: Bool
  private var steps = 0

  private var headerPath: String { path + ImageHeader.suffix }
  private var headerPartial: String { headerPath + PartialFile.suffix }

  static func begin(_ path: String, replacing: Bool, size: Int) throws(PinError) -> ImageFiles {
    for suffix in [ImageHeader.suffix, PartialFile.suffix] where path.hasSuffix(suffix) {
      throw PinError(
        .invalidArgument, operation: "write \(path)",
        advice: "Files of that ending belong to other images; choose a path that does not end in \(suffix).")
    }
    var files = ImageFiles(path: path, data: try .begin(path, replacing: replacing), replacing: replacing)
    files.step()
    // A header alone is no image, but a directory or a device of that name is none of ours.
    for name in [files.headerPath, files.headerPartial] {
      guard try NamedFile.attributes(of: name)?.isRegular ?? true else {
        throw PinError(.invalidArgument, operation: "write \(name)", advice: "What is there is no plain file.")
      }
    }
    try NamedFile.remove(files.headerPartial)
    files.step()
    try files.data.file.setSize(size)
    return files
  }

  private init(path: String, data: consuming PartialFile, replacing: Bool) {
    self.path = path
    self.data = data
    self.replacing = replacing
  }

  /// Where the pages go.
  var known: KnownDescriptor { data.file.known }

  /// Makes the image exist. All pages have been written; when it returns, the image survives a power failure. When it throws, there
  /// is no image, or the old one.
  mutating func commit(_ header: ImageHeader) throws(PinError) {
    let content = try header.encoded()
    try data.file.sync()
    step()
    do throws(PinError) {
      try writeHeader(content)
      step()
      try removeOld()
      try NamedFile.rename(headerPartial, to: headerPath, replacing: true)
    } catch {
      _ = try? NamedFile.remove(headerPartial)
      throw error
    }
    step()
    do throws(PinError) {
      try data.publish(replacing: false)
    } catch {
      _ = try? NamedFile.remove(headerPath)
      throw error
    }
    step()
    do throws(PinError) {
      try NamedFile.syncDirectory(of: path)
    } catch {
      // The caller hears that there is no image, so there must be none.
      _ = try? NamedFile.remove(path)
      _ = try? NamedFile.remove(headerPath)
      throw error
    }
    step()
  }

  private func writeHeader(_ content: [UInt8]) throws(PinError) {
    let file = try NamedFile.create(headerPartial)
    let result: Result<Void, PinError> = unsafe content.withUnsafeBytes { bytes in
      do throws(PinError) { return .success(try unsafe file.write(bytes)) } catch { return .failure(error) }
    }
    try result.get()
    try file.sync()
  }

  private mutating func removeOld() throws(PinError) {
    guard replacing else { return }
    let hadHeader = try NamedFile.remove(headerPath)
    step()
    let hadPages = try NamedFile.remove(path)
    // Before the new header has its name: beside the old pages it would be a damaged image, and not none.
    if hadHeader || hadPages { try NamedFile.syncDirectory(of: path) }
    step()
  }

  private mutating func step() {
    steps += 1
    TestHooks.reach(.imageStep, page: steps)
  }
}
