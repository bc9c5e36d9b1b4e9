internal import CUffd
internal import SystemPackage

extension SubmissionRing {
  /// One stretch of a file and the memory that belongs to it.
  public struct Transfer: Sendable, Hashable {
    public var descriptor: CInt
    /// In the file, in bytes.
    public var offset: Int
    /// Must stay mapped until the call returns.
    public var memory: AddressRange

    public init(descriptor: CInt, offset: Int, memory: AddressRange) {
      self.descriptor = descriptor
      self.offset = offset
      self.memory = memory
    }
  }

  /// What to do with memory that lies behind the end of the file.
  public enum EndOfFile: Sendable, Hashable {
    /// Throw `.outOfBounds`.
    case fail
    /// Fill it with zeros, as a mapping of the file's last page shows them.
    case zeroFill
  }

  /// Fills the memory of every transfer, however many there are, or throws; never leaves old bytes behind silently.
  ///
  /// Blocks. Short reads are continued and interrupted ones repeated. When it throws, no operation is running any more, and the
  /// content of the memory is undefined. Only where other code closed the ring's number (`.descriptorLost`) is one waited for no longer than
  /// 10 s, such as a read of a pipe that nobody writes to.
  /// - Throws: The first failure; `.inUse` if operations queued by the caller are in flight.
  public mutating func readAll(_ transfers: [Transfer], atEnd: EndOfFile = .fail) throws(PinError) {
    try run(transfers, reading: true, atEnd)
  }

  /// Writes the memory of every transfer, however many there are, or throws.
  ///
  /// Blocks. Short writes are continued and interrupted ones repeated. When it throws, no operation is running any more, and what
  /// the files hold of this batch is undefined. Says nothing about durability: sync afterwards.
  /// - Throws: The first failure, `.outOfSpace` for one; `.inUse` if operations queued by the caller are in flight.
  public mutating func writeAll(_ transfers: [Transfer]) throws(PinError) {
    try run(transfers, reading: false, .fail)
  }

  private mutating func run(_ transfers: [Transfer], reading: Bool, _ atEnd: EndOfFile) throws(PinError) {
    let operation = reading ? "io_uring read" : "io_uring write"
    guard inFlight == 0 else {
      throw PinError(.inUse, operation: operation, advice: "Take the completions of what is in flight first.")
    }
    guard transfers.allSatisfy({ $0.offset >= 0 && $0.memory.start != 0 }) else {
      throw PinError(.invalidArgument, operation: "\(operation) at a negative offset, or at address 0")
    }
    var done = [Int](repeating: 0, count: transfers.count)  // bytes
    var unfinished: [Int] = []  // came back short
    var next = 0
    var failure: PinError?
    repeat {
      while failure == nil, inFlight < capacity, let index = unfinished.last ?? (next < transfers.count ? next : nil) {
        guard queue(transfers[index], skipping: done[index], reading, UInt64(index)) == .queued else { break }
        if unfinished.popLast() == nil { next += 1 }
      }
      do throws(PinError) {
        try submit(waitingFor: 1)
      } catch {
        failure = failure ?? error
        // What was not accepted must not run later, on memory that is the caller's again; what was is waited for, also
        // where the ring's number is lost: the mapped queue shows it.
        let mayPass: [Errno?] = [.resourceTemporarilyUnavailable, .resourceBusy, .noMemory]
        let dropped = discardQueued()
        if error.code == .descriptorLost {
          unsafe cuffd_ring_settle(raw)
          throw failure ?? error
        }
        guard dropped > 0 || mayPass.contains(error.errno) else { throw error }
      }
      while let completion = nextCompletion() {
        let index = Int(completion.userData)
        switch completion.outcome {
        case .failed(.interrupted): unfinished.append(index)
        case .failed(let errno):
          failure =
            failure ?? .kernel(Int(-errno.rawValue), "\(operation) at \(transfers[index].offset)", transfers[index].memory)
        case .done(let bytes):
          done[index] += bytes
          let rest = transfers[index].memory.count - done[index]
          if rest == 0 { continue }
          if bytes > 0 {
            unfinished.append(index)
          } else if reading, atEnd == .zeroFill {
            let start = unsafe UnsafeMutableRawPointer(bitPattern: transfers[index].memory.end - UInt(rest))!
            unsafe start.initializeMemory(as: UInt8.self, repeating: 0, count: rest)  // inside the caller's memory
          } else {
            let place = "\(operation) at \(transfers[index].offset + done[index])"
            failure = failure ?? (reading ? .beyondEnd(place) : PinError(.outOfSpace, operation: place))
          }
        }
      }
    } while inFlight > 0 || (failure == nil && (next < transfers.count || !unfinished.isEmpty))
    if let failure { throw failure }
  }

  private mutating func queue(
    _ transfer: Transfer, skipping done: Int, _ reading: Bool, _ userData: UInt64
  ) -> QueueOutcome {
    let rest = AddressRange(start: transfer.memory.start + UInt(done), end: transfer.memory.end)
    return reading
      ? queueRead(from: transfer.descriptor, at: transfer.offset + done, into: rest, userData: userData)
      : queueWrite(to: transfer.descriptor, at: transfer.offset + done, from: rest, userData: userData)
  }
}
