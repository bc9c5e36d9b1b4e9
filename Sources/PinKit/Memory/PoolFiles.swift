internal import Synchronization

/// Where frames are that lie side by side: in which file of their pool, and from which byte on.
struct FramePlace: Sendable, Hashable {
  let file: Int
  let offset: Int

  func advanced(by bytes: Int) -> FramePlace { FramePlace(file: file, offset: offset + bytes) }
}

/// The files of a pool. To the kernel a file is one queue for whoever takes pages of it or gives some back, so there are several.
@safe struct PoolFiles: ~Copyable, @unchecked Sendable {  // made once, then only called
  private let files: UnsafeMutablePointer<MemoryFile>
  let count: Int

  /// One where the process has not the descriptors for so many, or io_uring takes no buffer of several files.
  init(_ wanted: Int) throws(PinError) {
    let count = Self.isAllowed && SliceBudget.take(wanted - 1) ? wanted : 1
    unsafe files = .allocate(capacity: count)
    var made = 0
    do throws(PinError) {
      while made < count {
        unsafe (files + made).initialize(to: try Self.make())
        made += 1
      }
    } catch {
      // With what few descriptors are left somebody else has more to do.
      SliceBudget.giveBack(count - 1)
      if made > 1 { unsafe (files + 1).deinitialize(count: made - 1) }
      if made == 0 {
        unsafe files.deallocate()
        throw error
      }
      self.count = 1
      return
    }
    self.count = count
  }

  /// Before Linux 6.5 io_uring refuses a fixed buffer whose pages are of several files, as those of a pin could be.
  private static let isAllowed = KernelVersion.isAtLeast(6, 5)

  private static func make() throws(PinError) -> MemoryFile {
    let file = try MemoryFile(name: "pinkit-pool", size: 0)
    file.keepSpare()
    return file
  }

  deinit {
    SliceBudget.giveBack(count - 1)
    unsafe files.deinitialize(count: count)
    unsafe files.deallocate()
  }

  /// The number, after a look at which file it stands for (K5); -1 if other code has closed it and its spare. One fstat(2).
  @inline(__always) func descriptor(_ file: Int) -> CInt { unsafe files[file].checked }

  func setSize(of file: Int, _ size: Int) throws(PinError) { unsafe try files[file].setSize(size) }

  var residentBytes: Int { (0..<count).reduce(0) { unsafe $0 + files[$1].residentBytes } }

  /// Puts new spares in the place of numbers that were closed. Whether there were any, and how many files are lost.
  func repair() -> (repaired: Bool, lost: Int) {
    var (repaired, lost) = (false, 0)
    for file in 0..<count {
      switch unsafe files[file].repair() {
      case .whole: continue
      case .repaired: repaired = true
      case .lost: lost += 1
      }
    }
    return (repaired, lost)
  }
}

extension FramePool {
  /// The descriptor of the file that frames are in; -1 if other code has closed it and its spare.
  @inline(__always) func descriptor(of place: FramePlace) -> CInt { files.descriptor(place.file) }

  /// Runs `body` with each part of `frames` that lies in one file, until it returns something other than 0.
  @inline(__always) func forEachPart(
    of frames: Range<Int>, in extent: borrowing Extent, _ body: (Range<Int>, FramePlace) -> CInt
  ) -> CInt {
    var start = frames.lowerBound
    while start < frames.upperBound {
      let part = start..<min(frames.upperBound, extent.part(of: start).upperBound)
      let result = body(part, extent.place(of: start))
      if result != 0 { return result }
      start = part.upperBound
    }
    return 0
  }

  /// Maps frames in the place of what is at `address`. 0 or a negative errno.
  func map(
    _ frames: Range<Int>, of extent: borrowing Extent, at address: UInt, _ protection: Mapping.Protection = .readWrite
  ) -> CInt {
    forEachPart(of: frames, in: extent) { part, place in
      Memory.replace(
        AddressRange(
          start: address + UInt((part.lowerBound - frames.lowerBound) * Memory.pageSize), count: part.count * Memory.pageSize
        ),
        file: descriptor(of: place), offset: place.offset, protection)
    }
  }

  /// Maps frames somewhere, side by side.
  func makeMapping(of frames: Range<Int>, in extent: borrowing Extent) throws(PinError) -> Mapping {
    let bytes = frames.count * Memory.pageSize
    let alignment = bytes >= 2 << 20 ? 2 << 20 : 4096
    if extent.part(of: frames.lowerBound).upperBound >= frames.upperBound {
      let place = extent.place(of: frames.lowerBound)
      return try Mapping(
        count: bytes, alignment: alignment, source: .file(descriptor(of: place), offset: place.offset, shared: true))
    }
    let mapping = try Mapping(count: bytes, alignment: alignment, source: .nothing)
    try PinError.check(map(frames, of: extent, at: mapping.range.start), "mmap of \(bytes) bytes")
    return mapping
  }

  /// The runs of an extent's frames that have memory.
  func populatedRuns(of extent: borrowing Extent) throws(PinError) -> [Range<Int>] {
    var runs: [Range<Int>] = []
    var failure: PinError?
    _ = forEachPart(of: 0..<extent.pageCount, in: extent) { part, place in
      do throws(PinError) {
        let bytes = place.offset..<place.offset + part.count * Memory.pageSize
        for run in try MemoryFile.dataRuns(of: descriptor(of: place), in: bytes) {
          let first = part.lowerBound + (run.lowerBound - place.offset) / Memory.pageSize
          let end = part.lowerBound + (run.upperBound - place.offset + Memory.pageSize - 1) / Memory.pageSize
          runs.append(first..<end)
        }
        return 0
      } catch {
        failure = error
        return -1
      }
    }
    if let failure { throw failure }
    return runs
  }
}
