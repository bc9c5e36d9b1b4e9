internal import Virtqueue

extension VringGarbage {
  /// One way to break the protocol.
  struct Kind: Sendable {
    let name: String
    /// The violation that the device must name.
    let violation: String
    var head: UInt16 = 1
    var index: UInt16 = 2
    /// How many chains are served all the same: the one in front, unless the ring itself is garbage.
    var served = 1
    /// Spoils the table; the second argument is how many bytes the region has.
    var spoil: @Sendable (inout [VirtqueueDescriptor], UInt64) -> Void = { _, _ in }
  }

  static let kinds: [Kind] = [
    Kind(name: "an index that jumps ahead", violation: "availableIndexJumped", index: 17, served: 0),
    Kind(name: "an index that goes back", violation: "availableIndexJumped", index: .max, served: 0),
    Kind(name: "a head beyond the table", violation: "headOutOfRange", head: 16),
    Kind(name: "a next beyond the table", violation: "nextOutOfRange") { table, _ in
      table[1].flags = .next
      table[1].next = 16
    },
    Kind(name: "a chain that loops", violation: "chainTooLong") { table, _ in
      table[1].flags = .next
      table[1].next = 2
      table[2].flags = .next
      table[2].next = 1
    },
    Kind(name: "a table within the table", violation: "indirect") { table, _ in table[1].flags = .indirect },
    Kind(name: "readable behind writable", violation: "readableAfterWritable") { table, _ in
      table[1].flags = [.write, .next]
      table[1].next = 2
    },
    Kind(name: "a buffer behind the region", violation: "outsideMemory") { table, bytes in
      table[1] = VirtqueueDescriptor(address: bytes, length: 1, flags: .write)
    },
    Kind(name: "a buffer across its end", violation: "outsideMemory") { table, bytes in
      table[1] = VirtqueueDescriptor(address: bytes - 1, length: 2, flags: .write)
    },
    Kind(name: "a buffer before the region", violation: "outsideMemory") { table, _ in
      table[1] = VirtqueueDescriptor(address: 0 &- 4096, length: 64, flags: .write)
    },
    Kind(name: "an end that overflows", violation: "outsideMemory") { table, _ in
      table[1] = VirtqueueDescriptor(address: .max - 15, length: 32, flags: .write)
    },
    Kind(name: "a length of 4 GiB", violation: "outsideMemory") { table, _ in table[1].length = .max },
  ]
}
