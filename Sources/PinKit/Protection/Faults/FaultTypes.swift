internal import Synchronization

/// What the runtime knows of types that have parameters, and of what types conform to, it makes when code that is not optimized first needs it,
/// and allocates for that. In the fault path all of it must be there (K2): the very first fault may be a signal handler's that has interrupted
/// malloc(3).
enum FaultTypes {
  /// Before anything is protected. Which types these are the tests say, that count allocations from the first fault on.
  static func prepare() { _ = count }

  private static let count: Int = {
    let types: [Any.Type] = [
      Range<Int>.self, AccessRefusal?.self, (ReuseDecision, Range<Int>).self, (Bool, Bool).self,
      (stream: Int, window: Int)?.self, InlineArray<64, Int>.self, InlineArray<256, ParkedFaults.Fault>.self,
      InlineArray<16, CChar>.self,
    ]
    let streams = SequentialStreams()
    streams.expect(1, in: streams.find(expecting: 0)?.stream ?? streams.begin(), window: 1)
    useAtomically(FaultDelivery.none)
    compare(ReuseDecision.copy)
    compare(FaultResolution.opened)
    compare(UffdResult.done)
    compare(AccessRefusal.sealed)
    compare(OwedBytes.Verdict.held)
    compare(LockRank.page)
    compare(ReusePolicy.exclusive)
    compare(PinError.Code.pinned)
    combine(FaultMessage.PageFaultFlags.write, FaultMessage.PageFaultFlags.minor)
    combine(Mapping.Protection.read, Mapping.Protection.readWrite)
    combine(FrameWord.Flags.frozen, FrameWord.Flags.dying)
    combine(PageTable.Entry.open, PageTable.Entry.claimed)
    return types.count
  }()

  @inline(never) private static func useAtomically<Value: AtomicRepresentable>(_ value: Value) {
    _ = Value.decodeAtomicRepresentation(Value.encodeAtomicRepresentation(value))
  }

  /// Of a type of an upper floor whose values the fault path compares.
  @inline(never) static func compare<Value: Equatable>(_ value: Value) { _ = value == value }

  @inline(never) private static func combine<Options: OptionSet>(_ some: Options, _ others: Options) {
    _ = some.union(others).subtracting(others).isDisjoint(with: some)
  }
}
