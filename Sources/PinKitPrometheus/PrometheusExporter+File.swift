public import SystemPackage

#if canImport(Glibc)
  internal import Glibc
#elseif canImport(Musl)
  internal import Musl
#endif

extension PrometheusExporter {
  /// Writes ``text()`` to a file, for the textfile collector of node_exporter: its name must end in `.prom`. Who reads the file finds what it
  /// was, or all of what it is: it is written beside, with a dot before its name, and renamed.
  ///
  /// Blocks for as long as the file system does. One caller at a time.
  ///
  /// - Throws: `Errno`: what the file system says, `.noSpace` and `.noSuchFileOrDirectory` among others. The file is as it was then.
  public func write(to path: FilePath) throws(Errno) {
    guard let name = path.lastComponent else { throw .isDirectory }
    let temporary = path.removingLastComponent().appending(".\(name.string).new")
    do {
      let file = try FileDescriptor.open(
        temporary, .writeOnly, options: [.create, .truncate, .closeOnExec],
        permissions: [.ownerReadWrite, .groupRead, .otherRead])
      try file.closeAfter { _ = try file.writeAll(text().utf8) }
    } catch {
      unlinkFile(temporary)
      throw error as? Errno ?? .ioError
    }
    let result = unsafe temporary.withPlatformString { old in
      unsafe path.withPlatformString { new in unsafe rename(old, new) }
    }
    guard result == 0 else {
      let error = Errno(rawValue: errno)
      unlinkFile(temporary)
      throw error
    }
  }

  private func unlinkFile(_ path: FilePath) { _ = unsafe path.withPlatformString { unsafe unlink($0) } }
}
