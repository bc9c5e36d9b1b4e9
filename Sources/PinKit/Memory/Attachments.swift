internal import Synchronization

/// What a higher floor keeps with a region, and what it must do when the region changes.
protocol RegionAttachment: AnyObject, Sendable {
  /// The region is about to go, and nothing has changed yet. Called once, before the others.
  func regionWillGo()
  /// The region's memory is about to go, and nothing has been lifted yet: keep what is owed of it. Called once.
  func bytesWillGo()
  /// The region's memory is about to go: lift every protection and wake whoever waits. Called once, without locks held.
  func regionWillUnmap()
  /// The memory is not mapped any more, and its frames have not been freed. Called once, last.
  func regionDidUnmap()
}

extension RegionAttachment {
  func regionWillGo() {}
  func regionDidUnmap() {}
  func bytesWillGo() {}
}

/// What a higher floor keeps with an address space.
protocol AddressSpaceService: AnyObject, Sendable {
  /// A region was made, and nobody has seen it yet.
  func regionDidMap(_ region: Region) throws(PinError)
  /// The space is about to close; no region has been unmapped for that yet.
  func spaceWillClose()
  /// Every region is unmapped: stop threads, close descriptors.
  func shutDown()
}

extension AddressSpaceService {
  func regionDidMap(_ region: Region) throws(PinError) {}
  func spaceWillClose() {}
}

/// One object per type, made when it is first asked for.
struct Attachments: ~Copyable, Sendable {
  private let objects = Mutex<[(type: ObjectIdentifier, object: any AnyObject & Sendable)]>([])

  func find<Object: AnyObject & Sendable>(_ type: Object.Type) -> Object? {
    objects.withLock { list in
      list.first { $0.type == ObjectIdentifier(type) }?.object as? Object
    }
  }

  /// `make` runs under the lock, so that there is only ever one.
  func findOrMake<Object: AnyObject & Sendable>(
    _ type: Object.Type, _ make: () throws(PinError) -> Object
  ) throws(PinError) -> Object {
    try objects.withLock { list throws(PinError) in
      if let found = list.first(where: { $0.type == ObjectIdentifier(type) })?.object as? Object { return found }
      let made = try make()
      list.append((ObjectIdentifier(type), made))
      return made
    }
  }

  func first<P>(as: P.Type) -> P? {
    objects.withLock { list in
      for entry in list { if let found = entry.object as? P { return found } }
      return nil
    }
  }

  func all<P>(as: P.Type) -> [P] { objects.withLock { $0.compactMap { $0.object as? P } } }

  func remove<Object>(_ type: Object.Type) { objects.withLock { $0.removeAll { $0.type == ObjectIdentifier(type) } } }

  func removeAll() { objects.withLock { $0.removeAll() } }
}
