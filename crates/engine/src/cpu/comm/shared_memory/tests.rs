use std::thread::ScopedJoinHandle;

use super::*;

/// What `body` answers on each of `world` ranks.
fn on_ranks<T: Send>(
    world: usize,
    limit: Duration,
    body: impl Fn(SharedMemory) -> T + Sync,
) -> Vec<thread::Result<T>> {
    thread::scope(|scope| {
        let body = &body;
        let ranks: Vec<ScopedJoinHandle<'_, T>> = SharedMemory::group(world, limit)
            .into_iter()
            .map(|comm| scope.spawn(move || body(comm)))
            .collect();
        ranks.into_iter().map(ScopedJoinHandle::join).collect()
    })
}

const LONG: Duration = Duration::from_secs(60);

#[test]
fn sums_have_the_same_bits_on_every_rank_and_are_those_of_the_order_of_ranks() {
    for world in [1, 2, 3, 8] {
        let numbers = |rank: usize, exchange: usize| -> Vec<f32> {
            (0..exchange % 5 * 7).map(|i| ((i + 3 * rank + exchange) as f32).sin() * 1e3).collect()
        };
        let sums = on_ranks(world, LONG, |mut comm| {
            let exchange = |exchange| {
                let mut own = numbers(comm.rank(), exchange);
                comm.all_reduce(&mut own).unwrap();
                own.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
            };
            (0..200).map(exchange).collect::<Vec<_>>()
        });
        for sums in sums {
            for (exchange, bits) in sums.unwrap().into_iter().enumerate() {
                let mut expected = numbers(0, exchange);
                for rank in 1..world {
                    expected.iter_mut().zip(numbers(rank, exchange)).for_each(|(sum, x)| *sum += x);
                }
                assert_eq!(bits, expected.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), "{exchange}");
            }
        }
    }
}

#[test]
fn parts_of_any_length_are_gathered_in_the_order_of_ranks() {
    let gathered = on_ranks(3, LONG, |mut comm| {
        let part = vec![comm.rank() as f32; comm.rank() * 2];
        let mut seen = Vec::new();
        comm.all_gather(&part, &mut |rank, part| seen.push((rank, part.to_vec()))).unwrap();
        seen
    });
    for seen in gathered {
        assert_eq!(seen.unwrap(), [(0, vec![]), (1, vec![1.0; 2]), (2, vec![2.0; 4])]);
    }
}

#[test]
fn a_rank_that_panics_ends_the_exchange_of_all_at_once() {
    let began = Instant::now();
    let outcomes = on_ranks(4, LONG, |mut comm| {
        comm.all_reduce(&mut [1.0]).unwrap();
        if comm.rank() == 2 {
            panic!("rank two is done for");
        }
        comm.all_reduce(&mut [1.0])
    });
    let expected = CommError::Ended { rank: 2, world: 4, why: "it panicked".to_owned() };
    for (rank, outcome) in outcomes.into_iter().enumerate() {
        match (rank, outcome) {
            (2, outcome) => assert!(outcome.is_err()),
            (_, outcome) => assert_eq!(outcome.unwrap(), Err(expected.clone())),
        }
    }
    assert!(began.elapsed() < LONG / 2);
}

#[test]
fn a_rank_that_does_not_come_is_named_after_the_limit() {
    let limit = Duration::from_millis(100);
    let outcomes = on_ranks(3, limit, |mut comm| {
        if comm.rank() == 1 {
            thread::sleep(4 * limit);
        }
        comm.all_reduce(&mut [1.0])
    });
    // The late rank learns it too when it comes at last.
    let expected = CommError::Late { missing: vec![1], world: 3, waited: limit };
    assert!(outcomes.into_iter().all(|outcome| outcome.unwrap() == Err(expected.clone())));
    assert!(expected.to_string().contains("of 3 tensor-parallel ranks, [1] did not come"), "{expected}");
}

#[test]
fn ranks_of_different_models_are_told_apart() {
    let outcomes = on_ranks(2, LONG, |mut comm| {
        let mut numbers = vec![0.0; 3 + comm.rank()];
        comm.all_reduce(&mut numbers)
    });
    for outcome in outcomes {
        let error = outcome.unwrap().unwrap_err();
        assert!(matches!(error, CommError::Lengths { .. } | CommError::Ended { .. }), "{error}");
    }
}

#[test]
fn an_end_is_told_with_the_last_words() {
    let mut ends = SharedMemory::group(2, LONG);
    ends[1].fail("out of memory");
    let error = ends[0].all_reduce(&mut [0.0]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "tensor-parallel rank 1 of 2 has ended (out of memory), and the others cannot go on without its part of the \
         model: restart the server"
    );
}
