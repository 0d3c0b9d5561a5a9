package «package»

/**
 * A question with passages of documents in front.
 *
 * @param message to send
 * @param passages those in it, the best one first
 * @param messages what was said before, which may be shorter now
 */
internal class Grounded(val message: String, val passages: List<Passage>, val messages: List<Message>) {
    companion object {
        private const val INTRODUCTION = «introduction | kotlin»
        private const val QUESTION = "\n\nQuestion: "

        /** Words of a question that leans on the one before it. */
        private const val SHORT = «short»

        /**
         * Which passages come with a [question], and which leave with those before it.
         *
         * Passages take at most half of the [context], and leave a quarter to the answer. Where a conversation grows too long for
         * that, earlier questions lose theirs: what was said stays.
         *
         * @param count the tokens of a prompt of messages
         */
        fun of(
            documents: Documents,
            question: String,
            said: List<Message>,
            context: Int,
            count: (List<Message>) -> Int
        ): Grounded {
            val found = documents.search(lookedUp(question, said))
            val most = count(listOf(Message("user", question))) + context / 2

            fun fitting(before: List<Message>): List<Passage> {
                val chosen = mutableListOf<Passage>()
                for (passage in found) {
                    val message = Message("user", message(question, chosen + passage))
                    if (count(listOf(message)) <= most && count(before + message) <= context * 3 / 4) chosen += passage
                }
                return chosen
            }

            var messages = said
            var chosen = fitting(messages)
            if (found.isNotEmpty() && chosen.isEmpty()) {
                messages = said.map { if (it.role == "user") Message(it.role, questionOf(it.content)) else it }
                chosen = fitting(messages)
            }
            return Grounded(message(question, chosen), chosen, messages)
        }

        /** The best passage comes last, next to the question; without any it is the question. */
        private fun message(question: String, passages: List<Passage>): String {
            if (passages.isEmpty()) return question
            val texts = passages.reversed().map { "From ${it.source}:\n${it.text}" }
            return (listOf(INTRODUCTION) + texts).joinToString("\n\n") + QUESTION + question
        }

        private fun questionOf(message: String): String =
            if (message.startsWith(INTRODUCTION)) message.substringAfterLast(QUESTION) else message

        /** A short question with the one before it. */
        private fun lookedUp(question: String, said: List<Message>): String {
            if (Words.of(question).size > SHORT) return question
            val before = said.lastOrNull { it.role == "user" }?.let { questionOf(it.content) }
            return listOfNotNull(question, before).joinToString(" ")
        }
    }
}
