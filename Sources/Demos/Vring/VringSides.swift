internal import Dispatch
internal import Glibc
internal import PinKit
internal import Synchronization
internal import Virtqueue

/// Posts messages until the time is up, and checks the answers.
struct VringDriverSide<Rings: RingMemory> {
  private struct Flying {
    var number: UInt64
    var slot: Int
  }
  private static var slotBytes: Int { 1000 }
  /// After the time is up, for what is outstanding.
  private static var patience: UInt64 { 20_000_000_000 }

  private let exchange: VringExchange
  private let rings: Rings
  private var free: [Int]
  private var flying: [UInt16: Flying] = [:]
  private var posted: UInt64 = 0
  private var (completed, wrong, denied) = (0, 0, 0)

  init(_ exchange: VringExchange, _ rings: Rings) {
    self.exchange = exchange
    self.rings = rings
    free = Array(0..<VringExchange.payloadPages.count * VringExchange.pageSize / Self.slotBytes)
  }

  consuming func run() throws {
    var side = self
    try side.exchangeMessages()
  }

  private mutating func exchangeMessages() throws {
    var driver = try begin()
    exchange.isReady.store(true, ordering: .releasing)
    while exchange.goesOn {
      let now = DispatchTime.now().uptimeNanoseconds
      if now > exchange.end, flying.isEmpty || now > exchange.end + Self.patience { break }
      let isPosted = now < exchange.end ? try post(&driver) : false
      if try !complete(&driver), !isPosted { sched_yield() }
    }
    let (posted, completed, wrong, denied) = (Int(posted), completed, wrong, denied + driver.retries)
    exchange.outcome.withLock {
      $0.posted = posted
      $0.completed = completed
      $0.wrong += wrong
      $0.denied += denied
    }
  }

  /// The rings' pages may be denied from the first moment on.
  private func begin() throws -> VirtqueueDriver<Rings> {
    while true {
      do { return try VirtqueueDriver(exchange.layout, rings) } catch {
        guard case .memory(let cause) = error, cause.code == .accessDenied, exchange.goesOn else { throw error }
        sched_yield()
      }
    }
  }

  private func place(_ slot: Int) -> Int {
    VringExchange.payloadPages.lowerBound * VringExchange.pageSize + slot * Self.slotBytes
  }

  private mutating func post(_ driver: inout VirtqueueDriver<Rings>) throws -> Bool {
    guard let slot = free.last else { return false }
    let at = place(slot)
    let message = VringMessage.make(posted)
    do {
      unsafe try message.withUnsafeBytes { unsafe try exchange.region.copy($0, toByteOffset: at) }
    } catch let error as PinError { return try tryAgain(error) }
    // Two parts to read and two to write, cut anywhere.
    let cut = Int(posted % UInt64(VringMessage.byteCount))
    let rest = VringMessage.byteCount - cut
    let id = try driver.post([
      .readable(at: at, cut), .readable(at: at + cut, rest), .writable(at: at + 500, rest),
      .writable(at: at + 500 + rest, cut),
    ])
    guard let id else { return false }
    if flying.updateValue(Flying(number: posted, slot: slot), forKey: id) != nil { wrong += 1 }
    free.removeLast()
    posted += 1
    return true
  }

  private mutating func complete(_ driver: inout VirtqueueDriver<Rings>) throws -> Bool {
    guard let completion = try driver.takeCompletion() else { return false }
    guard let chain = flying.removeValue(forKey: completion.id) else {
      wrong += 1
      return true
    }
    var answer = [UInt8](repeating: 0, count: VringMessage.byteCount)
    while exchange.goesOn {
      do {
        let at = place(chain.slot) + 500
        unsafe try answer.withUnsafeMutableBytes { unsafe try exchange.region.copy(fromByteOffset: at, into: $0) }
        break
      } catch let error as PinError { _ = try tryAgain(error) }
    }
    if completion.length != VringMessage.byteCount || answer != VringMessage.answer(to: chain.number) { wrong += 1 }
    free.append(chain.slot)
    completed += 1
    return true
  }

  private mutating func tryAgain(_ error: PinError) throws -> Bool {
    guard error.code == .accessDenied else { throw error }
    denied += 1
    sched_yield()
    return false
  }
}

/// Serves what comes, and counts how often each number did.
struct VringDeviceSide<Rings: RingMemory> {
  private let exchange: VringExchange
  private let rings: Rings

  init(_ exchange: VringExchange, _ rings: Rings) {
    self.exchange = exchange
    self.rings = rings
  }

  func run() throws {
    while exchange.goesOn, !exchange.isReady.load(ordering: .acquiring) { sched_yield() }
    var device = VirtqueueDevice(exchange.layout, rings, buffers: exchange.region)
    var times: [UInt8] = []
    var wrong = 0
    while exchange.goesOn {
      let count = try device.serve { request throws(PinError) in
        var bytes = [UInt8](repeating: 0, count: request.readableByteCount)
        var span = bytes.mutableSpan
        _ = try request.read(into: &span)
        guard let number = VringMessage.number(bytes), number < 1 << 32 else {
          wrong += 1
          return
        }
        _ = try request.write(VringMessage.answer(to: number).span)
        // Nothing more can be denied: it will not be asked for again.
        while times.count <= Int(number) { times.append(0) }
        times[Int(number)] &+= 1
      }
      if count == 0 { sched_yield() }
    }
    let (once, denied, bad) = (times.filter { $0 == 1 }.count, device.retries, wrong)
    exchange.outcome.withLock {
      $0.servedOnce = once
      $0.wrong += bad
      $0.denied += denied
    }
  }
}
