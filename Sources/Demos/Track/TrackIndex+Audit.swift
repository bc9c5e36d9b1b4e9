extension TrackIndex {
  /// What an audit of the whole index found.
  struct Audit: Sendable, Hashable {
    var words = 0
    var occurrences = 0
    /// Words whose count or postings are not the corpus's.
    var wrong = 0
    var first: String?
  }

  /// Walks the index in `bytes` and compares it with the corpus: each word's count and its number of postings, and that the first
  /// postings of each word point at it. Nobody may write meanwhile.
  func audit(_ bytes: UnsafeRawBufferPointer, _ corpus: TrackCorpus, copies: Int) -> Audit {
    var audit = Audit()
    for bucket in 0..<layout.bucketCount {
      var entry = Int(unsafe bytes.load(fromByteOffset: bucket * 4, as: UInt32.self))
      while entry != 0 {
        let start = entry + TrackIndexLayout.entryHeader
        guard layout.entries.contains(entry), layout.entries.contains(start),
          unsafe layout.entries.contains(start + Self.length(bytes, entry) - 1)
        else {
          audit.note("bucket \(bucket) leads to byte \(entry), which is not in the words")
          break
        }
        unsafe check(entry, bytes, corpus, copies, &audit)
        entry = Int(unsafe bytes.load(fromByteOffset: entry, as: UInt32.self))
      }
    }
    if audit.words != corpus.counts.count {
      audit.note("there are \(audit.words) words, and the texts have \(corpus.counts.count)")
    }
    return audit
  }

  private static func length(_ bytes: UnsafeRawBufferPointer, _ entry: Int) -> Int {
    Int(unsafe bytes.load(fromByteOffset: entry + 16, as: UInt32.self))
  }

  private func check(
    _ entry: Int, _ bytes: UnsafeRawBufferPointer, _ corpus: TrackCorpus, _ copies: Int, _ audit: inout Audit
  ) {
    let start = entry + TrackIndexLayout.entryHeader
    let word = unsafe Array(bytes[start..<start + Self.length(bytes, entry)])
    let count = Int(unsafe bytes.load(fromByteOffset: entry + 4, as: UInt32.self))
    audit.words += 1
    audit.occurrences += count
    let expected = (corpus.counts[word[...]] ?? 0) * copies
    let name = String(decoding: word, as: UTF8.self)
    guard count == expected else {
      audit.note("'\(name)' is counted \(count) times, and the texts have it \(expected) times")
      return
    }
    var chunk = Int(unsafe bytes.load(fromByteOffset: entry + 8, as: UInt32.self))
    var postings = 0
    while chunk != 0, postings <= count {
      guard layout.postings.contains(chunk) else {
        audit.note("a posting of '\(name)' is at byte \(chunk), which is not in the postings")
        return
      }
      if postings == 0, unsafe !pointsAt(word, chunk, bytes, corpus, copies) {
        audit.note("a posting of '\(name)' points at something else")
        return
      }
      postings += Int(unsafe bytes.load(fromByteOffset: chunk + 4, as: UInt32.self))
      chunk = Int(unsafe bytes.load(fromByteOffset: chunk, as: UInt32.self))
    }
    if postings != count { audit.note("'\(name)' has \(postings) postings, and is counted \(count) times") }
  }

  /// Whether the postings of a chunk lead to `word` in the texts.
  private func pointsAt(
    _ word: [UInt8], _ chunk: Int, _ bytes: UnsafeRawBufferPointer, _ corpus: TrackCorpus, _ copies: Int
  ) -> Bool {
    let used = Int(unsafe bytes.load(fromByteOffset: chunk + 4, as: UInt32.self))
    guard used <= TrackIndexLayout.postingsPerChunk else { return false }
    for index in 0..<used {
      let posting = unsafe bytes.load(fromByteOffset: chunk + 8 + index * 8, as: UInt64.self)
      let (document, offset) = (Int(posting >> 32), Int(posting & 0xffff_ffff))
      guard document < corpus.texts.count * copies else { return false }
      let text = corpus.texts[document % corpus.texts.count].bytes
      guard offset + word.count <= text.count else { return false }
      for at in word.indices where TrackCorpus.lowercased(text[offset + at]) != word[at] { return false }
    }
    return true
  }
}

extension TrackIndex.Audit {
  fileprivate mutating func note(_ what: String) {
    wrong += 1
    first = first ?? what
  }
}
