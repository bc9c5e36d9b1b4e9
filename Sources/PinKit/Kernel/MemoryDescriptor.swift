internal import CUffd

/// A memfd for as long as it takes to map it.
struct MemoryDescriptor: ~Copyable {
  let descriptor: CInt
  init(name: String, size: Int, hugetlb: Bool) throws(PinError) {
    let made = CInt(
      try PinError.check(unsafe name.withCString { unsafe cuffd_memfd($0, hugetlb ? 1 | 4 : 1) }, "memfd_create"))
    let result = cuffd_resize(made, Int64(size))
    if result < 0 { cuffd_close(made) }
    try PinError.check(result, "ftruncate of a memfd")
    descriptor = made
  }
  deinit { cuffd_close(descriptor) }
}
