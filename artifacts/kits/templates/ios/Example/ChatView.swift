import «name»
import SwiftUI

/// A conversation on one screen: progress of the first check, messages as they are made, a button to stop, memory in use.
struct ChatView: View {
    /// The bundle's folder.
    let bundle: URL

    @State private var chat: Chat?
    @State private var checked = 0.0
    @State private var lines: [Line] = []
    @State private var draft = ""
    @State private var answer: Task<Void, Never>?
    @State private var trouble: String?
    @State private var memory = MemoryReport.now

    struct Line: Identifiable {
        let id = UUID()
        let mine: Bool
        var text: String
    }

    var body: some View {
        VStack {
            if chat == nil, trouble == nil {
                ProgressView("Opening the model", value: checked)
            }
            ScrollView {
                LazyVStack(alignment: .leading) {
                    ForEach(lines) { line in
                        Text(line.text).foregroundStyle(line.mine ? Color.secondary : Color.primary)
                    }
                }
            }
            if let trouble {
                Text(trouble).foregroundStyle(Color.red)
            }
            HStack {
                TextField("Message", text: $draft).onSubmit { send() }
                if let answer {
                    Button("Stop") { answer.cancel() }
                } else {
                    Button("Send") { send() }.disabled(chat == nil || draft.isEmpty)
                }
            }
            Text("\(memory.used / 1_000_000) MB in use").font(.caption)
        }
        .padding()
        .task { await open() }
        .task { await watchMemory() }
        .onDisappear { answer?.cancel() }
    }

    private func open() async {
        guard chat == nil else { return }
        do {
            chat = try await Chat(bundle: bundle) { part in
                Task { @MainActor in checked = max(checked, part) }
            }
        } catch {
            trouble = error.localizedDescription
        }
    }

    private func send() {
        guard let chat, answer == nil, !draft.isEmpty else { return }
        let text = draft
        draft = ""
        trouble = nil
        lines += [Line(mine: true, text: text), Line(mine: false, text: "")]
        answer = Task {
            do {
                for try await piece in chat.send(text) {
                    lines[lines.count - 1].text += piece
                }
            } catch let error as MessageTooLong { // the conversation is as it was
                lines.removeLast(2)
                draft = text
                trouble = error.localizedDescription
            } catch {
                trouble = error.localizedDescription
            }
            answer = nil
        }
    }

    private func watchMemory() async {
        while !Task.isCancelled {
            memory = .now
            try? await Task.sleep(for: .seconds(1))
        }
    }
}
