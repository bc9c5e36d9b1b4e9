/// What a mirror or a window of pages is for.
public enum MappingAccess: Sendable, Hashable {
  case reading
  case writing
}
