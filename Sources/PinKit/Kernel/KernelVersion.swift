internal import CUffd

/// What can only be known by the version of the running kernel.
enum KernelVersion {
  /// uname(2)'s release.
  static let release: String = {
    var release = [CChar](repeating: 0, count: 65)
    _ = unsafe release.withUnsafeMutableBufferPointer { unsafe cuffd_kernel_release($0.baseAddress!, CInt($0.count)) }
    return String(decoding: release.prefix { $0 != 0 }.map(UInt8.init(bitPattern:)), as: UTF8.self)
  }()

  private static let numbers = release.split { !$0.isNumber }.prefix(2).compactMap { Int($0) }

  /// False where the kernel does not say its version.
  static func isAtLeast(_ major: Int, _ minor: Int) -> Bool {
    numbers.count == 2 && (numbers[0], numbers[1]) >= (major, minor)
  }
}
