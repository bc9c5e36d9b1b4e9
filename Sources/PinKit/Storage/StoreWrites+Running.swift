internal import SystemPackage

extension StoreWrites {
  /// Carries out what waits, many at a time. False if the ring fails: then it must be dropped, and the rest be written otherwise.
  mutating func run(on ring: inout SubmissionRing) -> Bool {
    var inFlight = Set<Int>()
    while !waiting.isEmpty || !inFlight.isEmpty {
      let files = waiting.isEmpty ? (-1, -1) : descriptors()
      while inFlight.count < RingPool.depth, let index = next() {
        guard queue(index, files, on: &ring) else {
          again(index)
          break
        }
        inFlight.insert(index)
      }
      do throws(PinError) {
        // Handing over one by one would cost a system call each.
        try ring.submit(waitingFor: waiting.isEmpty ? inFlight.count : (inFlight.count + 1) / 2)
      } catch {
        // Dropping the ring waits for what is on its way; whether that was written is not known then.
        for index in inFlight { again(index) }
        return false
      }
      while let completion = ring.nextCompletion() {
        let index = Int(completion.userData)
        inFlight.remove(index)
        switch completion.outcome {
        case .done(let bytes): finish(index, bytes)
        case .failed(let errno): finish(index, -Int(errno.rawValue))
        }
      }
    }
    return true
  }

  private mutating func queue(
    _ index: Int, _ files: (direct: CInt, plain: CInt), on ring: inout SubmissionRing
  ) -> Bool {
    let operation = operations[index]
    return ring.queueWrite(
      to: operation.isDirect ? files.direct : files.plain, at: operation.offset, from: vectors, operation.pieces,
      isAtomic: store.options.writesWholePages, userData: UInt64(index)) == .queued
  }

  /// Carries out what waits, one after the other.
  mutating func runOneByOne() {
    while let index = next() {
      let operation = operations[index]
      finish(
        index,
        store.file.write(
          descriptor(of: operation), vectors, operation.pieces, at: operation.offset,
          isAtomic: store.options.writesWholePages))
    }
  }
}
