# Loading: what is wrong with a site is one sentence that says what, where, and
# what to do.
use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use Test::More;
use Serai::Driver;

my $good = 'sub { [200, [], [$main::started // "", $ENV{A} // ""]] }';
my @table = (
    ['a good one', 'ready', {}],
    ['syntax error', qr/^failed app\.psgi line 2: syntax error, near "\)\) "$/, { files => { 'app.psgi' => "use strict;\nif (1)) { }\nsub { }\n" } }],
    ['undeclared variable', qr/^failed app\.psgi line 2: Global symbol "\$x" requires explicit package name/, { files => { 'app.psgi' => "use strict;\n\$x = 1;\n" } }],
    ['missing module', qr/^failed app\.psgi line 3: the Perl module Foo::Bar is not installed: install it beneath the site \(cpanm -L local Foo::Bar, .* or ask the operator$/,
        { files => { 'app.psgi' => "\n\nuse Foo::Bar;\nsub {}" } }],
    ['missing file', qr{^failed app\.psgi line 1: no such file no/such\.pl in \@INC: write the path as \./no/such\.pl}, { files => { 'app.psgi' => "require 'no/such.pl'; sub {}" } }],
    ['missing module of a module', qr/^failed lib\/My\.pm line 2: the Perl module Not::There is not installed/,
        { files => { 'app.psgi' => 'use My; sub {}', 'lib/My.pm' => "package My;\nuse Not::There;\n1" }, block => [inc => 'lib'] }],
    ['a module that is false', qr/^failed app\.psgi line 1: My\.pm did not return a true value/, { files => { 'app.psgi' => 'use My; sub {}', 'lib/My.pm' => "package My; 0" }, block => [inc => 'lib'] }],
    ['dies', qr/^failed app\.psgi line 1: no database$/, { files => { 'app.psgi' => 'die "no database"' } }],
    ['dies with a line', qr/^failed app\.psgi: no database$/, { files => { 'app.psgi' => 'die "no database\n"' } }],
    ['dies with an object', qr/^failed app\.psgi: HASH\(/, { files => { 'app.psgi' => 'die {}' } }],
    ['dies with control characters', qr/^failed app\.psgi: a b$/, { files => { 'app.psgi' => 'die "a\x1b\x00b\n"' } }],
    ['no application', qr/^failed app\.psgi: its last statement gives no PSGI application: let the file end/, { files => { 'app.psgi' => '1;' } }],
    ['empty', qr/^failed app\.psgi: its last statement gives no/, { files => { 'app.psgi' => '' } }],
    ['exits', qr/^failed the site's code called exit while it was loaded/, { files => { 'app.psgi' => 'exit 0' } }],
    ['no such app', qr/^failed app\.psgi: no such file in \S+\/site: create it or correct the manifest$/, { files => { x => '' } }],
    ['app is a directory', qr/^failed app\.psgi is no file/, { files => { 'app.psgi/x' => '' } }],
    ['no such root', qr/^failed no such directory \S+\/nowhere: create it or correct spec\.root$/, { root => 'nowhere' }],
    ['root is a file', qr/^failed \S+\/site\/app\.psgi is no directory/, { root => 'site/app.psgi' }],
    ['root leads out', qr/^failed spec\.root out leads out of the home, to \/usr/, { root => 'out', link => '/usr' }],
    ['root by a link within', 'ready', { root => 'in', link => 'site' }],
    ['root is the home', qr/^failed app\.psgi: no such file/, { root => '.' }],
    ['startup', 'ready', { files => { 'app.psgi' => $good, 'startup.pl' => '$main::started = "yes"; 0' }, block => [startup => 'startup.pl'] }],
    ['startup dies', qr/^failed startup\.pl line 1: no$/, { files => { 'app.psgi' => $good, 'startup.pl' => 'die "no"' }, block => [startup => 'startup.pl'] }],
    ['startup missing', qr/^failed startup\.pl: no such file/, { block => [startup => 'startup.pl'] }],
    ['an object with to_app', 'ready', { files => { 'app.psgi' => 'package A; sub to_app { sub { [200, [], ["x"]] } } bless {}' } }],
    ['an object that is code', 'ready', { files => { 'app.psgi' => 'package A; use overload "&{}" => sub { sub { [200, [], ["x"]] } }; bless {}' } }],
    ['a long message', qr/^failed app\.psgi: x{1400,}/, { files => { 'app.psgi' => 'die "x" x 100000, "\n"' } }],
    ['scripts without a directory', qr/^failed the directory of scripts \S+\/cgi-bin does not exist/, { only => [script => "/cgi-bin\0cgi-bin"] }],
    ['a block with an unknown field', qr/^failed the block has an unknown field color/, { block => [color => 'red'] }],
    ['a block with a wrong number', qr/^failed the block's max is no number/, { block => [max => 'many'] }],
    ['a block with neither', qr/^failed the block has neither app nor script/, { only => [min => 0] }],
    ['a block that is none', qr/^failed the block/, { raw => "\xff\xff\xff\xff\0" }],
    ['an empty block', qr/^failed the block has neither/, { raw => '' }],
);
for (@table) {
    my ($name, $want, $o) = @$_;
    my $home = File::Temp::tempdir(CLEANUP => 1);
    if ($o->{link}) { symlink $o->{link}, "$home/$o->{root}" or die }
    my $d = Serai::Driver->new(home => $home, files => { 'app.psgi' => $good }, %$o, exists $o->{files} ? (files => $o->{files}) : (),
        block => $o->{only} // [app => 'app.psgi', max => 1, @{ $o->{block} // [] }], raw => $o->{raw});
    my $word = $d->word;
    ok ref $want ? $word =~ $want : $word eq $want, $name or diag "$word\n", $d->log;
    ok length $word <= 4096, "$name: fits";
    if ($word =~ /^failed/) { is $d->ended, 256, "$name: status 1" }
}

subtest 'what the code sees while it loads' => sub {
    my $d = Serai::Driver->new(
        files => {
            'app.psgi' => 'use FindBin; use My; require "./rel.pl"; my @l = ($0, "@ARGV", $FindBin::Bin, __FILE__, My::x(), rel(), __PACKAGE__, "@INC[0,1]"); sub { [200, [], [join "\n", @l]] }',
            'lib/My.pm' => 'package My; sub x { "mine" } 1', 'rel.pl' => 'sub rel { "relative" } 1', 'local/lib/perl5/x' => '',
        },
        block => [app => 'app.psgi', inc => 'lib', inc => 'local/lib/perl5', max => 1],
    );
    is $d->word, 'ready';
    my $site = "$d->{home}/site";
    is $d->request->{body}, join "\n", "$site/app.psgi", '', $site, "$site/app.psgi", 'mine', 'relative', 'main', "$site/lib $site/local/lib/perl5";
    open my $f, '<', "/proc/$d->{pid}/cmdline";
    like readline $f, qr/^serai alice\/shop\0*$/, 'the title';
};

subtest 'descriptors of a program that the code starts' => sub {
    my $d = Serai::Driver->new(files => { 'app.psgi' => 'my $l = `ls /proc/self/fd`; sub { [200, [], [$l, `ls /proc/self/fd`]] }' }, block => [app => 'app.psgi']);
    $d->word;
    unlike $d->request->{body}, qr/^[456789]$/m, 'neither listener nor connection';
};

done_testing;
