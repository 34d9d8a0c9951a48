#include "instruction_sets.h"

#include <cstring>
#include <stdexcept>
#include <string>

namespace trqam {

int instruction_sets(const char* names[4]) {
    int count = 0;
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    if (avx512 && __builtin_cpu_supports("avx512bf16")) names[count++] = "avx512_bf16";
    if (avx512) names[count++] = "avx512";
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) names[count++] = "avx2";
    names[count++] = "baseline";
    return count;
}

namespace {

// Name of the set to use: the one asked for, or the best that has these operands. The dot product
// of bfloat16 pairs does twice the work of a float32 multiply-add at the same rate on AMD's cores,
// and at a quarter of the rate on Intel's: there float32 instructions take the rounded operands.
const char* resolve(const char* asked, Operands operands) {
    const char* names[4];
    const int count = instruction_sets(names);
    for (int i = 0; i < count; ++i) {
        const bool dot = std::strcmp(names[i], "avx512_bf16") == 0;
        if (asked ? std::strcmp(names[i], asked) == 0
                  : !dot || (operands == Operands::bf16 && __builtin_cpu_is("amd"))) {
            if (dot && operands != Operands::bf16) break;
            return names[i];
        }
    }
    throw std::invalid_argument("instruction set '" + std::string(asked ? asked : "") +
                                "' is not available here for these operands");
}

}  // namespace

template <>
const Passes<float>& passes<float>(const char* instruction_set, Operands operands) {
    const char* name = resolve(instruction_set, operands);
    const bool exact = operands == Operands::exact;
    if (std::strcmp(name, "avx512_bf16") == 0) return avx512_dot;
    if (std::strcmp(name, "avx512") == 0) {
        return exact ? avx512_exact_float32 : avx512_rounded;
    }
    if (std::strcmp(name, "avx2") == 0) return exact ? avx2_exact_float32 : avx2_rounded;
    return exact ? baseline_exact_float32 : baseline_rounded;
}

template <>
const Passes<double>& passes<double>(const char* instruction_set, Operands operands) {
    const char* name = resolve(instruction_set, operands);
    if (operands != Operands::exact) {
        throw std::invalid_argument("bfloat16 operands need float32 tensors");
    }
    if (std::strcmp(name, "avx512") == 0) return avx512_exact_float64;
    if (std::strcmp(name, "avx2") == 0) return avx2_exact_float64;
    return baseline_exact_float64;
}

namespace {

// The loops have no bf16 operands: where those are asked for, the set's are avx512's.
template <typename T>
const Loops<T>& choose_loops(const char* asked, const Loops<T>& avx512, const Loops<T>& avx2,
                             const Loops<T>& baseline) {
    if (asked && std::strcmp(asked, "avx512_bf16") == 0) asked = "avx512";
    const char* name = resolve(asked, Operands::exact);
    if (std::strcmp(name, "avx512") == 0) return avx512;
    return std::strcmp(name, "avx2") == 0 ? avx2 : baseline;
}

}  // namespace

template <>
const Loops<float>& loops<float>(const char* instruction_set) {
    return choose_loops(instruction_set, avx512_loops_float32, avx2_loops_float32,
                        baseline_loops_float32);
}

template <>
const Loops<double>& loops<double>(const char* instruction_set) {
    return choose_loops(instruction_set, avx512_loops_float64, avx2_loops_float64,
                        baseline_loops_float64);
}

}  // namespace trqam
