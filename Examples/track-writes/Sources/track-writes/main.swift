import PinKit

let space = try AddressSpace()
let region = try space.map(.anonymous, pages: 256)
let tracker = try region.trackWrites()

try region.store(42, toByteOffset: 3 * region.pageSize)
try region.withUnsafeMutableBytes { bytes in
  bytes[100 * region.pageSize] = 1
  bytes[101 * region.pageSize] = 1
}

for run in try tracker.collect() { print("written: pages \(run)") }
print("written since: \(try tracker.collect().count) pages")
try space.close()
