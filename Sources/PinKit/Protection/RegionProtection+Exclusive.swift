internal import Synchronization

extension RegionProtection {
  /// Runs `body` with the wrprotect lock held exclusively (W1).
  func exclusive<Result, Failure: Error>(
    file: StaticString = #fileID, line: UInt = #line,
    _ body: (borrowing FaultDomain) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    try unsafe domain.pointee.lock.withExclusive(rearm: { listenAgain() }, file: file, line: line) { () throws(Failure) in
      try begun(body)
    }
  }

  /// The same, `nil` rather than wait.
  func tryExclusive<Result, Failure: Error>(
    file: StaticString = #fileID, line: UInt = #line,
    _ body: (borrowing FaultDomain) throws(Failure) -> Result
  ) throws(Failure) -> Result? {
    try unsafe domain.pointee.lock.withExclusiveIfFree(rearm: { listenAgain() }, file: file, line: line) {
      () throws(Failure) in
      try begun(body)
    }
  }

  private func begun<Result, Failure: Error>(
    _ body: (borrowing FaultDomain) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    // A pin is counted without the lock, and then looks here: one of the two sees the other.
    unsafe domain.pointee.generation.add(1, ordering: .sequentiallyConsistent)
    atomicMemoryFence(ordering: .sequentiallyConsistent)
    unsafe domain.pointee.exclusiveSince.store(Kernel.now(), ordering: .relaxed)
    return try unsafe body(domain.pointee)
  }

  /// Replaces the first-write callbacks. When it returns, no earlier one is running.
  func setCallbacks(_ callbacks: FirstWriteCallbacks?) {
    let new = callbacks.map { UInt(bitPattern: unsafe Unmanaged.passRetained($0).toOpaque()) } ?? 0
    let old = exclusive { domain in
      let old = domain.callbacks.exchange(new, ordering: .sequentiallyConsistent)
      if new != 0 { domain.table.forgetTold() }
      return old
    }
    if old != 0 { unsafe Unmanaged<FirstWriteCallbacks>.fromOpaque(UnsafeRawPointer(bitPattern: old)!).release() }
  }

  /// Calls `body` under the exclusive lock until it returns true. Between tries the lock is free, as what the kernel waits for (an
  /// event to be read, its originator to run) may need the readers.
  ///
  /// - Throws: What `body` throws; `.timedOut`.
  func untilDone(_ body: (borrowing FaultDomain) throws(PinError) -> Bool) throws(PinError) {
    var deadline = unsafe Deadline(domain.pointee.patience)
    while true {
      try throwIfFailed("protect pages")
      let isDone: Bool
      do throws(PinError) {
        isDone = try exclusive { domain throws(PinError) in
          // The reader that this thread has waited for may have ended.
          try throwIfFailed("protect pages")
          return try body(domain)
        }
      } catch {
        // The cause, where there is one, says more than the refusal that it led to.
        try throwIfFailed("protect pages")
        throw error
      }
      if isDone { return }
      if deadline.isOver() {
        throw PinError(
          .timedOut, operation: "protect pages", range: addresses,
          advice: "A thread that unmaps or discards this memory has stopped half-way; nothing was lost, try again.")
      }
      Kernel.pause(nanoseconds: 50_000)
    }
  }
}
