import Testing
@testable import PinKit
