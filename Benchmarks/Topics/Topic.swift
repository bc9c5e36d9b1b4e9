internal import PinKit
