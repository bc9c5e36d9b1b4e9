internal import Foundation

extension FixedWidthInteger {
  /// With commas between thousands: `1,234`.
  package var grouped: String {
    var digits = Array(String(magnitude))
    var at = digits.count - 3
    while at > 0 {
      digits.insert(",", at: at)
      at -= 3
    }
    return (self < 0 ? "-" : "") + String(digits)
  }
}

/// `1 page`, `1,234 pages`.
package func counted(_ count: Int, _ name: String) -> String { "\(count.grouped) \(name)\(count == 1 ? "" : "s")" }

package func counted(_ count: Int, _ one: String, _ many: String) -> String { "\(count.grouped) \(count == 1 ? one : many)" }

extension Int {
  /// `4K`, `1.5M`, `12G`: at most six characters.
  package var bytes: String {
    var value = Double(self) / 1024
    var unit = 0
    while value >= 1000, unit < 4 {
      value /= 1024
      unit += 1
    }
    let isWhole = value.rounded() == value || value >= 100
    return (isWhole ? String(Int(value.rounded())) : value.rounded(to: 1)) + ["K", "M", "G", "T", "P"][unit]
  }
}

extension Double {
  /// With so many digits behind the point.
  package func rounded(to digits: Int) -> String { String(format: "%.\(digits)f", self) }
}

extension String {
  package func padded(to width: Int) -> String { self + String(repeating: " ", count: Swift.max(0, width - count)) }
  package func aligned(to width: Int) -> String { String(repeating: " ", count: Swift.max(0, width - count)) + self }
  package func cut(to width: Int) -> String { count > width ? String(prefix(width)) : self }
}
