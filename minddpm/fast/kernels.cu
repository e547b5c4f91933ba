// The device's kernels, each beside its plain NumPy twin, which is named above it and is its oracle in tests/device/.
// B batch, H W height and width, C channels in, N channels out, G groups.  Arrays are C-contiguous float32.
//
// A loop strides over the whole grid, so that any grid is right.  Sums have a fixed order and there are no atomics: the
// same input gives the same bits.  Nothing is assumed about warps.  A block has at most THREADS threads.
#define THREADS 1024
#define LEAVES 80                       // arrays a launch: their pointers must fit into the 4 KB of a kernel's arguments
#define FOR(i, n) for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < (n); i += gridDim.x * blockDim.x)

// The sum over the block's threads, for all of them: the upper half is added to the lower until one number is left.
static __device__ float block_sum(float value) {
    __shared__ float shared[THREADS];
    shared[threadIdx.x] = value;
    __syncthreads();
    for (unsigned n = blockDim.x; n > 1; n = (n + 1) / 2) {
        if (threadIdx.x < n / 2) shared[threadIdx.x] += shared[threadIdx.x + (n + 1) / 2];
        __syncthreads();
    }
    float total = shared[0];
    __syncthreads();
    return total;
}

static __device__ float block_max(float value) {
    __shared__ float shared[THREADS];
    shared[threadIdx.x] = value;
    __syncthreads();
    for (unsigned n = blockDim.x; n > 1; n = (n + 1) / 2) {
        if (threadIdx.x < n / 2) shared[threadIdx.x] = fmaxf(shared[threadIdx.x], shared[threadIdx.x + (n + 1) / 2]);
        __syncthreads();
    }
    float most = shared[0];
    __syncthreads();
    return most;
}

extern "C" {

// conv.im2col.  x (B,H,W,C) -> patches (B,OH,OW,k,k,C), n numbers; zeros outside x.
__global__ void im2col(const float *x, float *patches, unsigned n, int H, int W, int C, int OH, int OW, int k, int stride,
                       int before) {
    FOR(e, n) {
        unsigned rest = e, c = rest % C;
        int j = (rest /= C) % k, i = (rest /= k) % k, ow = (rest /= k) % OW, oh = (rest /= OW) % OH, b = rest / OH;
        int h = stride * oh + i - before, w = stride * ow + j - before;
        patches[e] = h >= 0 && h < H && w >= 0 && w < W ? x[((unsigned)(b * H + h) * W + w) * C + c] : 0.0f;
    }
}

// conv.col2im.  dpatches (B,OH,OW,k,k,C) -> dx (B,H,W,C), n numbers: each gathers the gradients of its copies.
__global__ void col2im(const float *dpatches, float *dx, unsigned n, int H, int W, int C, int OH, int OW, int k, int stride,
                       int before) {
    FOR(e, n) {
        unsigned rest = e, c = rest % C;
        int w = (rest /= C) % W, h = (rest /= W) % H, b = rest / H;
        float sum = 0;
        for (int i = 0; i < k; i++)
            for (int j = 0; j < k; j++) {
                int top = h + before - i, left = w + before - j, oh = top / stride, ow = left / stride;
                if (top >= 0 && left >= 0 && top % stride == 0 && left % stride == 0 && oh < OH && ow < OW)
                    sum += dpatches[((((unsigned)(b * OH + oh) * OW + ow) * k + i) * k + j) * C + c];
            }
        dx[e] = sum;
    }
}

// norm.group_norm, and swish.swish after it where swish is 1.  One block at a time for each image's group.
// x (B,P,C) of P pixels -> y (B,P,C); mean, r (B,G) are kept.
__global__ void norm_forward(const float *x, const float *gamma, const float *beta, float *y, float *mean, float *r, int B, int P,
                             int C, int G, float eps, int swish) {
    unsigned size = C / G, n = P * size;
    for (unsigned group = blockIdx.x; group < B * G; group += gridDim.x) {
        unsigned first = group % G * size, start = group / G * P * C + first;
        float sum = 0;
        for (unsigned e = threadIdx.x; e < n; e += blockDim.x) sum += x[start + e / size * C + e % size];
        float m = block_sum(sum) / n, square = 0;
        for (unsigned e = threadIdx.x; e < n; e += blockDim.x) {
            float centred = x[start + e / size * C + e % size] - m;
            square += centred * centred;
        }
        float scale = 1 / sqrtf(block_sum(square) / n + eps);
        for (unsigned e = threadIdx.x; e < n; e += blockDim.x) {
            unsigned c = e % size, place = start + e / size * C + c;
            float z = (x[place] - m) * scale * gamma[first + c] + beta[first + c];
            y[place] = swish ? z / (1 + expf(-z)) : z;
        }
        if (threadIdx.x == 0) {
            mean[group] = m;
            r[group] = scale;
        }
    }
}

// Their pullback: dy -> dx, and the sums of dz xhat and dz over each image's pixels, sums (2,B,C), whose sums over the images
// are dgamma and dbeta.
// blockDim is a multiple of C/G, so a thread meets one channel only.
__global__ void norm_backward(const float *dy, const float *x, const float *gamma, const float *beta, const float *mean,
                              const float *r, float *dx, float *sums, int B, int P, int C, int G, int swish) {
    __shared__ float of_thread[2][THREADS];
    unsigned size = C / G, n = P * size, c = threadIdx.x % size;
    for (unsigned group = blockIdx.x; group < B * G; group += gridDim.x) {
        unsigned first = group % G * size, start = group / G * P * C + first + c;
        float m = mean[group], scale = r[group], a = gamma[first + c], b = beta[first + c], sum_xhat = 0, sum_one = 0;
        for (unsigned e = threadIdx.x; e < n; e += blockDim.x) {
            unsigned place = start + e / size * C;
            float xhat = (x[place] - m) * scale, z = xhat * a + b, s = 1 / (1 + expf(-z));
            float dz = dy[place] * (swish ? s + z * s * (1 - s) : 1);
            dx[place] = dz;
            sum_xhat += dz * xhat;
            sum_one += dz;
        }
        of_thread[0][threadIdx.x] = sum_xhat;
        of_thread[1][threadIdx.x] = sum_one;
        __syncthreads();
        if (threadIdx.x < size) {                            // the rows of threads that share a channel
            for (unsigned t = threadIdx.x + size; t < blockDim.x; t += size) {
                sum_xhat += of_thread[0][t];
                sum_one += of_thread[1][t];
            }
            unsigned channel = group / G * C + first + c;
            sums[channel] = sum_xhat;
            sums[B * C + channel] = sum_one;
        }
        float mean_xhat = block_sum(threadIdx.x < size ? a * sum_xhat : 0) / n;
        float mean_one = block_sum(threadIdx.x < size ? a * sum_one : 0) / n;
        for (unsigned e = threadIdx.x; e < n; e += blockDim.x) {
            unsigned place = start + e / size * C;
            float xhat = (x[place] - m) * scale;
            dx[place] = scale * (a * dx[place] - mean_one - xhat * mean_xhat);
        }
    }
}

// swish.swish and its pullback; n numbers.
__global__ void swish(const float *x, float *y, unsigned n) {
    FOR(e, n) y[e] = x[e] / (1 + expf(-x[e]));
}

__global__ void swish_backward(const float *dy, const float *x, float *dx, unsigned n) {
    FOR(e, n) {
        float s = 1 / (1 + expf(-x[e]));
        dx[e] = dy[e] * (s + x[e] * s * (1 - s));
    }
}

// attention.attention's softmax, of scale times each row of S (rows,T), in place; one block at a time for each row.
__global__ void softmax(float *S, unsigned rows, unsigned T, float scale) {
    for (unsigned row = blockIdx.x; row < rows; row += gridDim.x) {
        float *P = S + (size_t)row * T, most = P[0], sum = 0;
        for (unsigned e = threadIdx.x; e < T; e += blockDim.x) most = fmaxf(most, P[e]);
        most = block_max(most);
        for (unsigned e = threadIdx.x; e < T; e += blockDim.x) sum += P[e] = expf(scale * (P[e] - most));
        sum = block_sum(sum);
        for (unsigned e = threadIdx.x; e < T; e += blockDim.x) P[e] /= sum;
    }
}

// Its pullback: dP (rows,T) -> dS = scale P (dP - sum of dP P over the row), in place.
__global__ void softmax_backward(float *dP, const float *P, unsigned rows, unsigned T, float scale) {
    for (unsigned row = blockIdx.x; row < rows; row += gridDim.x) {
        float *d = dP + (size_t)row * T, sum = 0;
        const float *p = P + (size_t)row * T;
        for (unsigned e = threadIdx.x; e < T; e += blockDim.x) sum += d[e] * p[e];
        sum = block_sum(sum);
        for (unsigned e = threadIdx.x; e < T; e += blockDim.x) d[e] = scale * p[e] * (d[e] - sum);
    }
}

// embedding.timestep_embedding, in double precision: t (B,) -> y (B, 2 half).
__global__ void timestep_embedding(const double *t, float *y, unsigned n, unsigned half) {
    FOR(e, n) {
        unsigned b = e / half, i = e % half;
        double angle = (t[b] - 1) * exp(-log(10000.0) / (half - 1) * i);
        y[2 * half * b + i] = sin(angle);
        y[2 * half * b + half + i] = cos(angle);
    }
}

// dropout.dropout: y = x m scale, where NumPy's Philox generator with the key (seed, layer) gives 16 bits for each number:
// its k-th block of four 64-bit words, k = 0, 1, ..., is the cipher of the counter k + 1.  x (B,D); blocks: D/16, rounded up, an image.
__global__ void dropout(const float *x, float *y, const unsigned long long *seeds, unsigned long long layer, unsigned B, unsigned D,
                        unsigned blocks, unsigned limit, float scale) {
    FOR(block, B * blocks) {
        unsigned image = block / blocks, k = block % blocks;
        unsigned long long key0 = seeds[image], key1 = layer, word[4] = {k + 1ull, 0, 0, 0};
        for (int round = 0; round < 10; round++) {
            unsigned long long a = 0xD2E7470EE14C6C93ull, b = 0xCA5A826395121157ull, word0 = word[0], word2 = word[2];
            word[0] = __umul64hi(b, word2) ^ word[1] ^ key0;
            word[1] = b * word2;
            word[2] = __umul64hi(a, word0) ^ word[3] ^ key1;
            word[3] = a * word0;
            key0 += 0x9E3779B97F4A7C15ull;
            key1 += 0xBB67AE8584CAA73Bull;
        }
        for (unsigned e = 0; e < 16 && 16 * k + e < D; e++) {
            unsigned place = image * D + 16 * k + e;
            y[place] = (word[e / 4] >> 16 * (e % 4) & 0xFFFF) >= limit ? x[place] * scale : 0.0f;
        }
    }
}

// Many arrays in one launch.  end: the running sum of their sizes.
struct Leaves {
    float *p[LEAVES], *m[LEAVES], *v[LEAVES], *ema[LEAVES];
    const float *g[LEAVES];
    unsigned end[LEAVES];
};

// optim.global_norm: one sum of g^2 for each block; n numbers in all.
__global__ void square_sums(Leaves leaves, unsigned n, float *sums) {
    unsigned leaf = 0;
    float sum = 0;
    FOR(i, n) {
        while (i >= leaves.end[leaf]) leaf++;
        float g = leaves.g[leaf][i - (leaf ? leaves.end[leaf - 1] : 0)];
        sum += g * g;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// optim.adam of the gradient times *clip, then optim.ema with 1 - decay = weight.  rate = lr / (1 - beta1^step),
// correct2 = 1 - beta2^step; gain1, gain2 = 1 - beta1, 1 - beta2.
__global__ void adam_ema(Leaves leaves, unsigned n, const float *clip, float rate, float correct2, float gain1, float gain2,
                         float eps, float weight) {
    unsigned leaf = 0;
    FOR(i, n) {
        while (i >= leaves.end[leaf]) leaf++;
        unsigned e = i - (leaf ? leaves.end[leaf - 1] : 0);
        float g = leaves.g[leaf][e] * *clip, *m = leaves.m[leaf] + e, *v = leaves.v[leaf] + e, *p = leaves.p[leaf] + e;
        *m += gain1 * (g - *m);
        *v += gain2 * (g * g - *v);
        *p -= rate * *m / (sqrtf(*v / correct2) + eps);
        leaves.ema[leaf][e] += weight * (*p - leaves.ema[leaf][e]);
    }
}

}
