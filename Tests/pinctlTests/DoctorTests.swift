import ArgumentParser
import CUffd
import Foundation
import SystemPackage
import Testing

@testable import PinKit
@testable import Reports
@testable import pinctl

@Suite("pinctl doctor")
struct DoctorTests {
  @Test("--json prints a report that decodes, and exits with 0")
  func json() async throws {
    let result = try await #require(processExitsWith: .exitCode(0), observing: [\.standardOutputContent]) {
      Pinctl.main(["doctor", "--json"])
    }
    let output = result.standardOutputContent
    let start = try #require(output.firstIndex(of: UInt8(ascii: "{")))
    let report = try JSONDecoder().decode(DoctorReport.self, from: Data(output[start...]))
    #expect(report.canRun)
    #expect(report.verdicts == report.capabilities.verdicts)
    #expect(report.capabilities.pageSize == Memory.pageSize)
  }

  @Test("it exits with 1 where not even mprotect works")
  func nothingWorks() async throws {
    let result = try await #require(processExitsWith: .exitCode(1), observing: [\.standardOutputContent]) {
      cuffd_inject(CInt(cuffd_call_mprotect.rawValue), 1, 0, 1_000)
      Pinctl.main(["doctor"])
    }
    #expect(String(decoding: result.standardOutputContent, as: UTF8.self).contains("PinKit cannot run here."))
  }

  @Test("the text has every mechanism, and each fix with its command")
  func text() {
    var made = Capabilities()
    made.anonymous.memory = .worked
    made.userfaultfd.device = .refused(.init(rawValue: 13))
    made.effectiveUser = 1000
    let text = DoctorReport(made).text()
    for mechanism in Capabilities.Mechanism.allCases { #expect(text.contains("  \(mechanism.rawValue) ")) }
    for fix in made.fixes { #expect(text.contains("$ \(fix.command)\n")) }
    #expect(text.contains("setfacl -m u:1000:rw /dev/userfaultfd"))
    #expect(text.contains("\n  pin first, then register"))
  }
}
