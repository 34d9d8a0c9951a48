// The passes of mlp.h for one instruction set. Included by the set's file, which has set the
// compiler's target and defined TRQAM_VECTOR_BYTES and TRQAM_TILE_ROWS.

namespace trqam {
namespace {

// Hands out aligned parts of scratch memory; without memory it only counts.
class Arena {
  public:
    explicit Arena(char* base) : base_(base) {}
    template <typename T>
    T* take(int64_t count) {
        const int64_t at = used_;
        used_ += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
        return base_ ? reinterpret_cast<T*>(base_ + at) : nullptr;
    }
    int64_t used() const { return used_; }

  private:
    char* base_;
    int64_t used_ = 0;
};

#include "tile.inl"
#include "rows.inl"

constexpr int64_t kChunkRows = 256;         // most rows that one task takes through a network
constexpr int64_t kCachedRows = 42;         // rows that go forward and back before others
constexpr int64_t kDepthBlock = 256;        // rows summed at a time in a weight gradient
constexpr int64_t kSumRows = 16;            // rows of a block of a bias gradient's sum
constexpr int64_t kGradientRows = 256;      // most rows of a kernel's gradient in one task
constexpr int64_t kWorkPerThread = 400000;  // multiply-adds below which a thread does not pay

template <typename T>
int useful_threads(const MlpWeights<T>& network, int64_t rows, int threads) {
    int64_t work = 0;
    for (int64_t l = 0; l <= network.layers; ++l) {
        work += network.widths[l] * network.widths[l + 1];
    }
    const int64_t useful = work * rows * network.stack() / kWorkPerThread;
    return useful < 1 ? 1 : useful < threads ? static_cast<int>(useful) : threads;
}

template <typename T>
int64_t widest(const MlpWeights<T>& network) {
    int64_t result = 0;
    for (int64_t l = 0; l <= network.layers + 1; ++l) {
        result = network.widths[l] > result ? network.widths[l] : result;
    }
    return result;
}

// Rows [begin, begin + count) of network g.
struct Task {
    int64_t g, begin, count;
};

// Splits `rows` rows of every network of a stack into tasks. With more networks than threads a task
// has many rows, since whoever takes it packs the network; else few, to balance the threads.
class Tasks {
  public:
    Tasks(int64_t stack, int64_t rows, int threads) : rows_(rows) {
        const int64_t share = (stack * rows + threads - 1) / threads;
        const int64_t most = stack > threads ? kChunkRows : kChunkRows / 4;
        chunk_ = share < most ? share : most;
        chunk_ = chunk_ < rows ? chunk_ : rows;
        per_network_ = chunk_ == 0 ? 0 : (rows + chunk_ - 1) / chunk_;
        count_ = per_network_ * stack;
    }
    int64_t count() const { return count_; }
    int64_t chunk() const { return chunk_; }
    Task operator[](int64_t index) const {
        const int64_t part = index % per_network_, begin = rows_ * part / per_network_;
        return {index / per_network_, begin, rows_ * (part + 1) / per_network_ - begin};
    }

  private:
    int64_t rows_, chunk_, per_network_, count_;
};

// Runs body(arena) in every thread, after checking that `shared` plus one private part for each
// fits the workspace; `layout(arena)` takes what a thread's body takes.
template <class Layout, class Body>
int64_t in_team(const Workspace& workspace, int threads, int64_t shared, const Layout& layout,
                const Body& body) {
    Arena sizing(nullptr);
    layout(sizing);
    const int64_t needed = shared + sizing.used() * threads;
    if (workspace.bytes < needed) return needed;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        Arena arena(workspace.data + shared + sizing.used() * omp_get_thread_num());
        body(arena);
    }
    return 0;
}

// Where the first layer's inputs come from: a plain MLP reads them whole, a field in three parts.
struct Inputs {
    int64_t observation = 0;
    int64_t action = 0;
    bool field = false;
};

// A network packed for forward passes, and the scratch of one task.
template <class Arithmetic>
class Forward {
    using Real = typename Arithmetic::Real;

  public:
    Forward(Arena& arena, const MlpWeights<Real>& network, const Inputs& inputs, int64_t chunk)
        : network_(network), inputs_(inputs) {
        const int64_t first = network.widths[1];
        if (inputs.field) {
            layers_[0] = Matrix<Arithmetic>(arena, inputs.observation, first);
            action_ = Matrix<Arithmetic>(arena, inputs.action, first);
            time_ = arena.take<Real>(padded(first));
            share_ = arena.take<Real>(chunk * padded(first));
        } else {
            layers_[0] = Matrix<Arithmetic>(arena, network.in(), first);
        }
        for (int64_t l = 1; l <= network.layers; ++l) {
            layers_[l] = Matrix<Arithmetic>(arena, network.widths[l], network.widths[l + 1]);
        }
        if (Arithmetic::kConverts) {
            rounded_ = arena.take<typename Arithmetic::Element>(kTileRows * (widest(network) + 1));
        }
        out_ = arena.take<Real>(chunk * padded(network.out()));
    }

    // Packs network g of the stack; LayerNorm's affine part is folded into the next layer.
    void load(int64_t g) {
        if (loaded_ == g) return;
        loaded_ = g;
        for (int64_t l = 0; l <= network_.layers; ++l) {
            const int64_t width = network_.widths[l + 1];
            const Real* kernel = network_.of(network_.kernels[l], g);
            const bool fold = network_.norm && l > 0;
            fill(layers_[l].bias, network_.of(network_.biases[l], g), width);
            pack(layers_[l], kernel, width, fold ? network_.of(network_.scales[l - 1], g) : nullptr,
                 fold ? network_.of(network_.shifts[l - 1], g) : nullptr);
            if (l == 0 && inputs_.field) {
                const Real* rest = kernel + inputs_.observation * width;
                const Real* none = nullptr;
                fill(action_.bias, rest, 0);
                pack(action_, rest, width, none, none);
                fill(time_, rest + inputs_.action * width, width);
            }
        }
    }

    // A plain MLP's rows, `inputs` `in` apart; returns out [rows, padded(out)].
    const Real* run(const Real* inputs, int64_t count, const Rows<Real>& rows) {
        const int64_t ld = padded(network_.widths[1]);
        for_blocks(count, [&](int64_t begin, int64_t size) {
            multiply(size, inputs + begin * network_.in(), network_.in(), layers_[0],
                     rows.activation[0] + begin * ld, ld, layers_[0].bias, 0, rounded_);
            activate(network_, 0, rows, begin, size);
        });
        return finish(count, rows);
    }

    // The observations' share of a field's first layer, the same at all steps.
    void observe(const Real* observations, int64_t count) {
        const int64_t ld = padded(network_.widths[1]);
        for_blocks(count, [&](int64_t begin, int64_t size) {
            multiply(size, observations + begin * inputs_.observation, inputs_.observation,
                     layers_[0], share_ + begin * ld, ld, layers_[0].bias, 0, rounded_);
        });
    }

    // The field at the observed rows, points x `action` apart and one time.
    const Real* evaluate(const Real* x, Real time, int64_t count, const Rows<Real>& rows) {
        const int64_t ld = padded(network_.widths[1]);
        for_blocks(count, [&](int64_t begin, int64_t size) {
            Real* z = rows.activation[0] + begin * ld;
            for (int64_t m = 0; m < size; ++m) {
                const Real* share = share_ + (begin + m) * ld;
#pragma omp simd
                for (int64_t i = 0; i < ld; ++i) z[m * ld + i] = share[i] + time * time_[i];
            }
            multiply(size, x + begin * inputs_.action, inputs_.action, action_, z, ld, z, ld,
                     rounded_);
            activate(network_, 0, rows, begin, size);
        });
        return finish(count, rows);
    }

  private:
    static void fill(Real* to, const Real* from, int64_t width) {
        for (int64_t i = 0; i < padded(width); ++i) to[i] = i < width ? from[i] : Real(0);
    }
    const Real* finish(int64_t count, const Rows<Real>& rows) {
        for (int64_t l = 1; l <= network_.layers; ++l) {
            const int64_t ld_in = padded(network_.widths[l]), ld = padded(network_.widths[l + 1]);
            Real* to = l < network_.layers ? rows.activation[l] : out_;
            for_blocks(count, [&](int64_t begin, int64_t size) {
                multiply(size, rows.activation[l - 1] + begin * ld_in, ld_in, layers_[l],
                         to + begin * ld, ld, layers_[l].bias, 0, rounded_);
                if (l < network_.layers) activate(network_, l, rows, begin, size);
            });
        }
        return out_;
    }

    const MlpWeights<Real>& network_;
    Inputs inputs_;
    Matrix<Arithmetic> layers_[kMaxLayers + 1];
    Matrix<Arithmetic> action_;
    Real *time_ = nullptr, *share_ = nullptr, *out_;
    typename Arithmetic::Element* rounded_ = nullptr;
    int64_t loaded_ = -1;
};

// A network packed for pulling gradients back to its inputs, or to a field's action alone.
template <class Arithmetic>
class Pullback {
    using Real = typename Arithmetic::Real;

  public:
    Pullback(Arena& arena, const MlpWeights<Real>& network, const Inputs& inputs, int64_t chunk)
        : network_(network), inputs_(inputs) {
        const int64_t in = inputs.field ? inputs.action : network.in();
        layers_[0] = Matrix<Arithmetic>(arena, network.widths[1], in);
        for (int64_t l = 1; l <= network.layers; ++l) {
            layers_[l] = Matrix<Arithmetic>(arena, network.widths[l + 1], network.widths[l]);
        }
        if (Arithmetic::kConverts) {
            rounded_ = arena.take<typename Arithmetic::Element>(kTileRows * (widest(network) + 1));
        }
        inputs_grad_ = arena.take<Real>(chunk * padded(in));
    }

    void load(int64_t g) {
        if (loaded_ == g) return;
        loaded_ = g;
        for (int64_t l = 0; l <= network_.layers; ++l) {
            const int64_t width = network_.widths[l + 1];
            const Real* kernel = network_.of(network_.kernels[l], g);
            if (l == 0 && inputs_.field) kernel += inputs_.observation * width;
            const bool fold = network_.norm && l > 0;
            pack_transposed(layers_[l], kernel, width,
                            fold ? network_.of(network_.scales[l - 1], g) : nullptr);
        }
    }

    // From cotangent [rows, out] to the gradients of all pre-activations.
    void run(const Real* cotangent, int64_t count, const Rows<Real>& rows, Real* const* grads) {
        for (int64_t l = network_.layers; l >= 1; --l) {
            const bool last = l == network_.layers;
            const Real* from = last ? cotangent : grads[l];
            const int64_t ld_from = last ? network_.out() : padded(network_.widths[l + 1]);
            const int64_t ld = padded(network_.widths[l]);
            for_blocks(count, [&](int64_t begin, int64_t size) {
                multiply(size, from + begin * ld_from, ld_from, layers_[l],
                         grads[l - 1] + begin * ld, ld, static_cast<const Real*>(nullptr), 0,
                         rounded_);
                deactivate(network_, l - 1, rows, grads[l - 1], begin, size);
            });
        }
    }

    // From the first pre-activations to the inputs, [rows, padded(width of the inputs)].
    const Real* to_inputs(const Real* first, int64_t count) {
        const int64_t ld_from = padded(network_.widths[1]), ld = padded(layers_[0].width);
        for_blocks(count, [&](int64_t begin, int64_t size) {
            multiply(size, first + begin * ld_from, ld_from, layers_[0], inputs_grad_ + begin * ld,
                     ld, static_cast<const Real*>(nullptr), 0, rounded_);
        });
        return inputs_grad_;
    }

  private:
    const MlpWeights<Real>& network_;
    Inputs inputs_;
    Matrix<Arithmetic> layers_[kMaxLayers + 1];
    Real* inputs_grad_;
    typename Arithmetic::Element* rounded_ = nullptr;
    int64_t loaded_ = -1;
};

// Scratch rows of a task that keeps no tape: with `slopes` one buffer for each layer, else two
// activations that take turns.
template <typename T>
Rows<T> scratch_rows(Arena& arena, const MlpWeights<T>& network, int64_t chunk, bool slopes) {
    Rows<T> rows{};
    const int64_t ld = padded(widest(network));
    T* turns[2] = {nullptr, nullptr};
    for (int64_t l = 0; l < network.layers; ++l) {
        if (slopes) {
            rows.activation[l] = arena.take<T>(chunk * ld);
            rows.slope[l] = arena.take<T>(chunk * ld);
            if (network.norm) rows.rstd[l] = arena.take<T>(chunk);
            continue;
        }
        if (l < 2) turns[l] = arena.take<T>(chunk * ld);
        rows.activation[l] = turns[l % 2];
    }
    return rows;
}

// Copies rows of `width` elements out of padded ones.
template <typename T>
void copy_rows(const T* from, int64_t count, int64_t width, T* to) {
    for (int64_t m = 0; m < count; ++m) {
        std::memcpy(to + m * width, from + m * padded(width), width * sizeof(T));
    }
}

#include "mlp_passes.inl"
#include "flow_passes.inl"

template <class Arithmetic>
constexpr Passes<typename Arithmetic::Real> kPasses = {
    mlp_forward<Arithmetic>, mlp_backward<Arithmetic>, action_gradient<Arithmetic>,
    rollout<Arithmetic>, lean_adjoint<Arithmetic>, velocity_along<Arithmetic>};

}  // namespace
}  // namespace trqam
