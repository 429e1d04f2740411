// Arithmetic that both the host and a GPU run is marked ORTH_HD.
#pragma once

#ifdef __CUDACC__
#define ORTH_HD __host__ __device__
#else
#define ORTH_HD
#endif
