// What the example's view uses of SwiftUI, from developer.apple.com/documentation/swiftui: types only, nothing is shown.
@_exported import Foundation

@MainActor @preconcurrency
public protocol View {
    associatedtype Body: View
    @ViewBuilder var body: Body { get }
}

/// What has no views of its own.
public protocol Leaf: View where Body == Never {}

extension Leaf {
    public var body: Never { return fatalError() }
}

extension Never: View {
    public typealias Body = Never
    public var body: Never { return fatalError() }
}

@resultBuilder
public struct ViewBuilder {
    public static func buildExpression<Content: View>(_ content: Content) -> Content { content }
    public static func buildBlock<each Content: View>(_ content: repeat each Content) -> some View { EmptyView() }
    public static func buildIf<Content: View>(_ content: Content?) -> Content? { content }
    public static func buildEither<First: View, Second: View>(first: First) -> Either<First, Second> { Either() }
    public static func buildEither<First: View, Second: View>(second: Second) -> Either<First, Second> { Either() }
}

public struct EmptyView: Leaf {
    public nonisolated init() {}
}

public struct Either<First: View, Second: View>: Leaf {
    nonisolated init() {}
}

extension Optional: View, Leaf where Wrapped: View {
    public typealias Body = Never
}

@propertyWrapper
public struct State<Value> {
    private final class Box {
        var value: Value
        init(_ value: Value) { self.value = value }
    }

    private let box: Box

    public init(wrappedValue: Value) { box = Box(wrappedValue) }

    public var wrappedValue: Value {
        get { box.value }
        nonmutating set { box.value = newValue }
    }

    public var projectedValue: Binding<Value> { Binding() }
}

extension State where Value: ExpressibleByNilLiteral {
    public init() { self.init(wrappedValue: nil) }
}

extension State: @unchecked Sendable where Value: Sendable {}

public struct Binding<Value> {}

public enum HorizontalAlignment { case leading, center, trailing }

public struct Color: Sendable {
    public static let primary = Color(), secondary = Color(), red = Color()
}

public struct Font: Sendable {
    public static let caption = Font()
}

public struct VStack<Content: View>: Leaf {
    public init(alignment: HorizontalAlignment = .center, spacing: Double? = nil, @ViewBuilder content: () -> Content) {}
}

public struct LazyVStack<Content: View>: Leaf {
    public init(alignment: HorizontalAlignment = .center, @ViewBuilder content: () -> Content) {}
}

public struct HStack<Content: View>: Leaf {
    public init(spacing: Double? = nil, @ViewBuilder content: () -> Content) {}
}

public struct ScrollView<Content: View>: Leaf {
    public init(@ViewBuilder content: () -> Content) {}
}

public struct ForEach<Data: RandomAccessCollection, Content: View>: Leaf where Data.Element: Identifiable {
    public init(_ data: Data, @ViewBuilder content: @escaping (Data.Element) -> Content) {}
}

public struct Text: Leaf {
    public init<S: StringProtocol>(_ content: S) {}
}

public struct TextField: Leaf {
    public init<S: StringProtocol>(_ title: S, text: Binding<String>) {}
}

public struct Button: Leaf {
    public init<S: StringProtocol>(_ title: S, action: @escaping () -> Void) {}
}

public struct ProgressView: Leaf {
    public init<S: StringProtocol>(_ title: S, value: Double?, total: Double = 1) {}
}

extension View {
    public func padding() -> some View { self }
    public func font(_ font: Font?) -> some View { self }
    public func foregroundStyle(_ style: Color) -> some View { self }
    public func disabled(_ disabled: Bool) -> some View { self }
    public func onSubmit(_ action: @escaping () -> Void) -> some View { self }
    public func onDisappear(perform action: (() -> Void)? = nil) -> some View { self }
    public func task(_ action: @escaping @Sendable @isolated(any) () async -> Void) -> some View { self }
}
