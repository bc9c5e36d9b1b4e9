internal import PinKit

/// What a guest finds in its memory when it starts: its program and its page table.
enum GuestImage {
  private static let pageSize = 4096
  /// Program, and three levels of tables.
  static let byteCount = 4 * pageSize
  static let programAddress: UInt64 = 0
  static let pageTable = UInt64(pageSize)
  /// How much the page table maps, in bytes: 1 GiB, each address to itself.
  static let reach = 512 << 21

  /// `rax`: value, `rcx`: how many, `rdx`: stride, `rsi`: base, `rdi`: offset, `r8`: mask of the offset, `r9`: step.
  private static let program: [UInt8] = [
    0x48, 0x89, 0x04, 0x3e,  // loop: mov [rsi+rdi], rax
    0x4c, 0x01, 0xc8,  //             add rax, r9
    0x48, 0x01, 0xd7,  //             add rdi, rdx
    0x4c, 0x21, 0xc7,  //             and rdi, r8
    0x48, 0xff, 0xc9,  //             dec rcx
    0x75, 0xee,  //                   jnz loop
    0xe6, 0x10,  //                   out 0x10, al
  ]

  /// Writes it to the start of the region. What is there already is left alone.
  static func place(in region: Region) throws(PinError) {
    var words = [UInt64](repeating: 0, count: byteCount / 8)
    for (index, byte) in program.enumerated() { words[index / 8] |= UInt64(byte) << UInt64(index % 8 * 8) }
    // Present, writable, for user mode, accessed and dirty: a processor that sets the last two itself writes to the tables.
    let rights: UInt64 = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 5 | 1 << 6
    let isLarge: UInt64 = 1 << 7
    words[512] = UInt64(2 * pageSize) | rights
    words[1024] = UInt64(3 * pageSize) | rights
    for entry in 0..<512 { words[1536 + entry] = UInt64(entry) << 21 | rights | isLarge }
    for (index, word) in words.enumerated()
    where try region.load(fromByteOffset: index * 8, as: UInt64.self) != word {
      try region.store(word, toByteOffset: index * 8)
    }
  }
}
