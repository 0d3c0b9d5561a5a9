package «package»

import kotlin.math.exp

/**
 * Chooses the next token. [temperature] 0 takes the most likely one; [topK] 0 and [topP] 1 set no limit. The same [seed] makes
 * the same choices.
 */
class Sampler(
    private val temperature: Double = 0.0,
    private val topK: Int = 0,
    private val topP: Double = 1.0,
    seed: Long = System.nanoTime()
) {
    private var state = seed

    /** The token for logits, one for each token of the vocabulary. Ties go to the lower one. */
    fun choose(logits: FloatArray): Int {
        if (temperature <= 0) return logits.indices.reduce { best, token -> if (logits[token] > logits[best]) token else best }
        var order = logits.indices.sortedWith(compareByDescending<Int> { logits[it] }.thenBy { it })
        if (topK > 0) order = order.take(topK)
        val highest = logits[order[0]].toDouble()
        val weights = order.map { exp((logits[it].toDouble() - highest) / temperature) }
        val enough = topP * weights.sum()
        var kept = 0
        var mass = 0.0
        while (kept < order.size && (kept == 0 || mass < enough)) mass += weights[kept++]
        var target = uniform() * mass
        for (i in 0 until kept) {
            target -= weights[i]
            if (target < 0) return order[i]
        }
        return order[kept - 1]
    }

    /** In [0, 1): SplitMix64, whose numbers are the same on every platform. */
    private fun uniform(): Double {
        state += -0x61c8864680b583ebL
        var z = state
        z = (z xor (z ushr 30)) * -0x40a7b892e31b1a47L
        z = (z xor (z ushr 27)) * -0x6b2fb644ecceee15L
        z = z xor (z ushr 31)
        return (z ushr 11) * (1.0 / (1L shl 53))
    }
}
