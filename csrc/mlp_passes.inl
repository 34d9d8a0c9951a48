// Forward and backward passes of a stack of plain MLPs. Included by passes.inl.

template <class Arithmetic, typename T = typename Arithmetic::Real>
int64_t mlp_forward(const MlpForward<T>& call, const Workspace& workspace) {
    const MlpWeights<T>& network = call.network;
    const int threads = useful_threads(network, call.rows, workspace.threads);
    const Tasks tasks(network.stack(), call.rows, threads);
    struct Local {
        Local(Arena& arena, const MlpForward<T>& call, int64_t chunk)
            : forward(arena, call.network, Inputs{}, chunk) {
            if (!call.tape) rows = scratch_rows(arena, call.network, chunk, false);
        }
        Forward<Arithmetic> forward;
        Rows<T> rows{};
    };
    return in_team(
        workspace, threads, 0, [&](Arena& arena) { Local(arena, call, tasks.chunk()); },
        [&](Arena& arena) {
            Local local(arena, call, tasks.chunk());
#pragma omp for schedule(dynamic, 1)
            for (int64_t index = 0; index < tasks.count(); ++index) {
                const Task task = tasks[index];
                const int64_t run = task.g / network.members;
                local.forward.load(task.g);
                if (call.tape) {
                    local.rows = tape_rows(call.tape, network, call.rows, task.g, task.begin);
                }
                const T* out = local.forward.run(
                    call.inputs + (run * call.rows + task.begin) * network.in(), task.count,
                    local.rows);
                copy_rows(out, task.count, network.out(),
                          call.out + (task.g * call.rows + task.begin) * network.out());
            }
        });
}

// Gradient of rows [first, first + count) of kernel l, and of what comes with it. With y the
// normalised activations, M = y^T dz and sums = column sums of dz, LayerNorm's affine part before
// the kernel makes
//   dW = scale M + shift sums^T,  dscale_i = sum_o W_io M_io,  dshift_i = sum_o W_io sums_o.
template <class Arithmetic>
class WeightGradient {
    using Real = typename Arithmetic::Real;
    using Element = typename Arithmetic::Element;
    using Vector = typename Arithmetic::Vector;
    static constexpr int kPair = Arithmetic::kPair;
    static constexpr int64_t kLeft = round_up(kTileRows, kLanes<Arithmetic>);

  public:
    // Tasks of at most `most` rows of a kernel, from `rows` rows of the batch.
    WeightGradient(Arena& arena, const MlpWeights<Real>& network, int64_t rows, int64_t most)
        : accumulates_(rows > kDepthBlock) {
        const int64_t wide = widest(network), depth = kDepthBlock;
        right_ = arena.take<Element>(depth * round_up(wide, kPanel<Arithmetic>));
        left_ = arena.take<Element>(depth * kTileRows + kLeft * kPair);
        product_ = arena.take<Real>((accumulates_ ? most : kTileRows) * padded(wide));
        sums_ = arena.take<Real>(padded(wide));
    }

    void run(const MlpBackward<Real>& call, int64_t g, int64_t l, int64_t first, int64_t count,
             const Real* left, int64_t ld_left, const Real* right, int64_t ld_right) {
        const int64_t width = call.network.widths[l + 1], ld = padded(width);
        std::memset(sums_, 0, ld * sizeof(Real));
        int64_t row = 0;
        do {
            const int64_t after = call.rows - row;
            const int64_t depth = after < kDepthBlock ? after : kDepthBlock;
            pack_right(right + row * ld_right, ld_right, width, depth);
            for (int64_t begin = 0; begin < count; begin += kTileRows) {
                const int64_t size = count - begin < kTileRows ? count - begin : kTileRows;
                pack_left(left + row * ld_left + first + begin, ld_left, count - begin, depth);
                Real* product = product_ + (accumulates_ ? begin * ld : 0);
                multiply_left(size, width, depth, product, ld, row > 0);
                if (depth == after) write(call, g, l, first + begin, size, product);
            }
            row += kDepthBlock;
        } while (row < call.rows);
        const MlpWeights<Real>& to = call.gradients;
        if (first == 0) std::memcpy(to.of(to.biases[l], g), sums_, width * sizeof(Real));
    }

  private:
    static __attribute__((noinline)) void unfold(int64_t width, Real scale, Real shift,
                                                 const Real* __restrict product,
                                                 const Real* __restrict sums,
                                                 const Real* __restrict kernel,
                                                 Real* __restrict d_kernel, Real* d_scale,
                                                 Real* d_shift) {
        Real with_scale = 0, with_shift = 0;
#pragma omp simd reduction(+ : with_scale, with_shift)
        for (int64_t o = 0; o < width; ++o) {
            d_kernel[o] = scale * product[o] + shift * sums[o];
            with_scale += kernel[o] * product[o];
            with_shift += kernel[o] * sums[o];
        }
        *d_scale = with_scale;
        *d_shift = with_shift;
    }

    // Writes rows [first, first + count) of kernel l's gradient from M's.
    void write(const MlpBackward<Real>& call, int64_t g, int64_t l, int64_t first, int64_t count,
               const Real* product) const {
        const MlpWeights<Real>&network = call.network, &to = call.gradients;
        const int64_t width = network.widths[l + 1], ld = padded(width);
        const bool fold = network.norm && l > 0;
        for (int64_t i = first; i < first + count; ++i, product += ld) {
            Real* d_kernel = to.of(to.kernels[l], g) + i * width;
            if (!fold) {
                std::memcpy(d_kernel, product, width * sizeof(Real));
                continue;
            }
            unfold(width, network.of(network.scales[l - 1], g)[i],
                   network.of(network.shifts[l - 1], g)[i], product, sums_,
                   network.of(network.kernels[l], g) + i * width, d_kernel,
                   to.of(to.scales[l - 1], g) + i, to.of(to.shifts[l - 1], g) + i);
        }
    }

    // Packs `depth` rows of the right operand, and adds up their columns: in blocks, as the error
    // grows with the rows of a block plus their number.
    void pack_right(const Real* right, int64_t ld, int64_t width, int64_t depth) {
        constexpr int64_t panel = kPanel<Arithmetic>, lanes = kLanes<Arithmetic>;
        Element* to = right_;
        for (int64_t column = 0; column < width; column += panel) {
            Vector sums[2] = {}, partial[2] = {};
            for (int64_t k = 0; k < depth; k += kPair, to += panel * kPair) {
                const Filled<kPair, panel, Real> rows(right + k * ld + column, ld, depth - k,
                                                      width - column);
                write_step<Arithmetic, 2>(to, [&](int i, int v) {
                    const Vector values = load(rows.from + i * rows.ld + v * lanes);
                    partial[v] += values;
                    return values;
                });
                if (k % kSumRows != kSumRows - kPair && k + kPair < depth) continue;
                for (int v = 0; v < 2; ++v) {
                    sums[v] += partial[v];
                    partial[v] = Vector{};
                }
            }
            for (int v = 0; v < 2; ++v) {
                *reinterpret_cast<Vector*>(sums_ + column + v * lanes) += sums[v];
            }
        }
    }

    // Packs a tile's rows of the transposed left operand, of which `columns` are there. The last
    // vector of a step reaches into the next one, which is written after it.
    void pack_left(const Real* left, int64_t ld, int64_t columns, int64_t depth) {
        constexpr int64_t lanes = kLanes<Arithmetic>;
        Element* to = left_;
        for (int64_t k = 0; k < depth; k += kPair, to += kTileRows * kPair) {
            const Filled<kPair, kLeft, Real> rows(left + k * ld, ld, depth - k, columns);
            write_step<Arithmetic, kLeft / lanes>(
                to, [&](int i, int v) { return load(rows.from + i * rows.ld + v * lanes); });
        }
    }

    // product [size, ld] = the packed operands' product, added to what it holds with `onto`.
    void multiply_left(int64_t size, int64_t width, int64_t depth, Real* product, int64_t ld,
                       bool onto) const {
        const int64_t steps = (depth + kPair - 1) / kPair;
        for (int64_t column = 0; column < width; column += kPanel<Arithmetic>) {
            Real* to = product + column;
            any_tile<Arithmetic, true>(size, steps, left_, 0, right_ + column * steps * kPair, to,
                                       ld, onto ? to : nullptr, ld);
        }
    }

    const bool accumulates_;
    Element *right_, *left_;
    Real *product_, *sums_;
};

template <class Arithmetic, typename T = typename Arithmetic::Real>
int64_t mlp_backward(const MlpBackward<T>& call, const Workspace& workspace) {
    const MlpWeights<T>& network = call.network;
    const int threads = useful_threads(network, call.rows, workspace.threads);
    // With many networks a task is one of them, its rows and then its weights, while they are in
    // the cache. Else all threads share the rows of one network, then the rows of its kernels.
    const bool whole = network.stack() >= 2 * threads || threads == 1;
    const Tasks rows_of_one(1, call.rows, threads);
    const int64_t chunk = whole ? (call.rows < kChunkRows ? call.rows : kChunkRows)
                                : rows_of_one.chunk();
    // Where the gradient of a row of a kernel is done at once, a task takes as many as there are.
    const int64_t gradient_rows = whole && call.rows <= kDepthBlock ? widest(network)
                                  : whole || threads < 3            ? kGradientRows
                                                                    : kGradientRows / 2;
    int64_t parts_of[kMaxLayers + 1], parts = 0;  // tasks of one network's weight gradients
    for (int64_t l = 0; l <= network.layers; ++l) {
        parts_of[l] = (network.widths[l] + gradient_rows - 1) / gradient_rows;
        parts += parts_of[l];
    }
    const auto take_grads = [&](Arena& arena, T** grads) {
        for (int64_t l = 0; l < network.layers; ++l) {
            grads[l] = arena.take<T>(call.rows * padded(network.widths[l + 1]));
        }
    };
    Arena sizing(nullptr), real(workspace.data);
    T* shared[kMaxLayers];
    if (!whole) take_grads(sizing, shared);
    if (!whole && workspace.data) take_grads(real, shared);
    struct Local {
        Local(Arena& arena, const MlpBackward<T>& call, int64_t chunk, int64_t gradient_rows)
            : pullback(arena, call.network, Inputs{}, chunk),
              gradient(arena, call.network, call.rows, gradient_rows) {}
        Pullback<Arithmetic> pullback;
        WeightGradient<Arithmetic> gradient;
    };

    // Gradients of all pre-activations of some rows of network g, into `grads`.
    const auto pull = [&](Local& local, int64_t g, int64_t begin, int64_t count, T* const* grads) {
        const int64_t at = g * call.rows + begin;
        T* here[kMaxLayers];
        for (int64_t l = 0; l < network.layers; ++l) {
            here[l] = grads[l] + begin * padded(network.widths[l + 1]);
        }
        local.pullback.load(g);
        local.pullback.run(call.cotangent + at * network.out(), count,
                           tape_rows(call.tape, network, call.rows, g, begin), here);
        if (call.d_inputs) {
            copy_rows(local.pullback.to_inputs(here[0], count), count, network.in(),
                      call.d_inputs + at * network.in());
        }
    };
    // Part `index` of the weight gradients of network g.
    const auto weigh = [&](Local& local, int64_t g, int64_t index, T* const* grads) {
        int64_t l = 0;
        while (index >= parts_of[l]) index -= parts_of[l++];
        const int64_t first = index * gradient_rows, left = network.widths[l] - first;
        const bool input = l == 0, last = l == network.layers;
        const Rows<T> rows = tape_rows(call.tape, network, call.rows, g, 0);
        local.gradient.run(
            call, g, l, first, left < gradient_rows ? left : gradient_rows,
            input ? call.inputs + g / network.members * call.rows * network.in()
                  : rows.activation[l - 1],
            input ? network.in() : padded(network.widths[l]),
            last ? call.cotangent + g * call.rows * network.out() : grads[l],
            last ? network.out() : padded(network.widths[l + 1]));
    };

    const auto layout = [&](Arena& arena) {
        T* grads[kMaxLayers];
        if (whole) take_grads(arena, grads);
        Local(arena, call, chunk, gradient_rows);
    };
    const auto body = [&](Arena& arena) {
        T* own[kMaxLayers];
        if (whole) take_grads(arena, own);
        Local local(arena, call, chunk, gradient_rows);
        if (whole) {
#pragma omp for schedule(dynamic, 1)
            for (int64_t g = 0; g < network.stack(); ++g) {
                const Tasks tasks(1, call.rows, 1);
                for (int64_t i = 0; i < tasks.count(); ++i) {
                    pull(local, g, tasks[i].begin, tasks[i].count, own);
                }
                for (int64_t i = 0; call.want_weights && i < parts; ++i) weigh(local, g, i, own);
            }
            return;
        }
        for (int64_t g = 0; g < network.stack(); ++g) {
#pragma omp for schedule(dynamic, 1)
            for (int64_t i = 0; i < rows_of_one.count(); ++i) {
                pull(local, g, rows_of_one[i].begin, rows_of_one[i].count, shared);
            }
            if (!call.want_weights) continue;
#pragma omp for schedule(dynamic, 1)
            for (int64_t i = 0; i < parts; ++i) weigh(local, g, i, shared);
        }
    };
    return in_team(workspace, threads, sizing.used(), layout, body);
}

// A task's rows go forward and back a few at a time, so that what a tape would hold stays in the
// cache.
template <class Arithmetic, typename T = typename Arithmetic::Real>
int64_t action_gradient(const ActionGradient<T>& call, const Workspace& workspace) {
    const MlpWeights<T>& network = call.network;
    const int64_t in = network.in(), out = network.out(), action = in - call.observation;
    const int threads = useful_threads(network, 2 * call.rows, workspace.threads);
    const Tasks tasks(network.stack(), call.rows, threads);
    const int64_t chunk = tasks.chunk() < kCachedRows ? tasks.chunk() : kCachedRows;
    struct Local {
        Local(Arena& arena, const ActionGradient<T>& call, int64_t action, int64_t chunk)
            : forward(arena, call.network, Inputs{}, chunk),
              pullback(arena, call.network, Inputs{call.observation, action, true}, chunk),
              rows(scratch_rows(arena, call.network, chunk, true)),
              cotangent(arena.take<T>(chunk * call.network.out())) {
            for (int64_t l = 0; l < call.network.layers; ++l) {
                grads[l] = arena.take<T>(chunk * padded(call.network.widths[l + 1]));
            }
        }
        Forward<Arithmetic> forward;
        Pullback<Arithmetic> pullback;
        Rows<T> rows;
        T *cotangent, *grads[kMaxLayers];
    };
    return in_team(
        workspace, threads, 0, [&](Arena& arena) { Local(arena, call, action, chunk); },
        [&](Arena& arena) {
            Local local(arena, call, action, chunk);
            for (int64_t i = 0; i < chunk * out; ++i) local.cotangent[i] = call.cotangent;
#pragma omp for schedule(dynamic, 1)
            for (int64_t index = 0; index < tasks.count(); ++index) {
                const Task task = tasks[index];
                local.forward.load(task.g);
                local.pullback.load(task.g);
                const int64_t first = task.g / network.members * call.rows + task.begin;
                const int64_t parts = (task.count + chunk - 1) / chunk;
                for (int64_t q = 0; q < parts; ++q) {
                    const int64_t row = task.count * q / parts;
                    const int64_t count = task.count * (q + 1) / parts - row;
                    const int64_t at = task.g * call.rows + task.begin + row;
                    const T* values =
                        local.forward.run(call.inputs + (first + row) * in, count, local.rows);
                    copy_rows(values, count, out, call.out + at * out);
                    local.pullback.run(local.cotangent, count, local.rows, local.grads);
                    copy_rows(local.pullback.to_inputs(local.grads[0], count), count, action,
                              call.gradient + at * action);
                }
            }
        });
}
